"""Which Host a request may name.

A web page can point a name of its own at 127.0.0.1 and so let a browser talk to a local server (DNS rebinding). The
browser then sends that name as Host, and that is how such requests are told apart.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.types import Scope

from braid.server.errors import HttpError
from braid.server.guard.body import echo


class HostCheck:
    """Refuses hosts that are not ours.

    Args:
        allowed: names that pass, without ports; ``*`` lets every name pass.
        local: the server listens on loopback only. Then this machine's own names pass too, and nothing else. On other
            addresses nothing is checked unless ``allowed`` says what to expect.
    """

    def __init__(self, allowed: Iterable[str], *, local: bool) -> None:
        self._allowed = frozenset(host.lower().rstrip(".") for host in allowed)
        self._local = local
        self._active = (local or bool(self._allowed)) and "*" not in self._allowed

    def check(self, scope: Scope) -> None:
        """Raises HttpError: 421, another Host than ours, or none (which HTTP/1.0 may leave out)."""
        if not self._active:
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not hosts and scope.get("http_version") == "1.0" and self._local:
            return
        if len(hosts) != 1 or not self._passes(_name(hosts[0].decode("latin-1"))):
            given = echo(hosts[0].decode("latin-1")) if hosts else "none"
            message = f"this server does not answer to the host {given}; --allowed-hosts can add names"
            raise HttpError(421, message, code="host_not_allowed")

    def _passes(self, name: str) -> bool:
        return name in self._allowed or (self._local and _is_local(name))


def _name(host: str) -> str:
    """A Host header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_local(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
