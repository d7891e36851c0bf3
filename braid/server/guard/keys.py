"""Who is asking: API keys and the principals behind them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from braid.core.errors import InvalidParameterError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_KEYS = 1024

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """The holder of an API key.

    Args:
        name: stands for the key in quotas, programs and metrics; never the key itself. Empty on an open server.
        salt: enters every block hash of its requests, so that no other principal can tell by timing what it has
            asked.
    """

    name: str = ""
    salt: str = ""


ANONYMOUS = Principal()
"""Everybody on a server without keys."""


class ApiKey(NamedTuple):
    """A key as it is kept: by its hash. ``name`` is what metrics and logs call its holder."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, key: str, name: str) -> ApiKey:
        """Raises InvalidParameterError: an empty key, or a name that is no label."""
        if not key.strip():
            raise InvalidParameterError("api_key must not be empty", param="api_key")
        if not _NAME.fullmatch(name):
            message = f"the name of an API key must be 1 to 64 of A-Z a-z 0-9 . _ -, got {name[:80]!r}"
            raise InvalidParameterError(message, param="api_key")
        return cls(name, _digest(key.strip().encode()))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def named_keys(keys: Sequence[str]) -> tuple[ApiKey, ...]:
    """Keys that were given without names: ``key-1``, ``key-2``, ..."""
    return tuple(ApiKey.of(key, f"key-{number}") for number, key in enumerate(keys, 1))


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """One ``name:key`` or ``key`` per line; blank lines and lines that begin with ``#`` are left out.

    Raises:
        InvalidParameterError: the file cannot be read, or has no key.
    """
    try:
        lines = path.read_text().splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read the API keys in {path}: {error}"
        raise InvalidParameterError(message, param="api_key_file") from error
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
        logger.warning("%s has API keys and is open to every user of this machine; chmod 600 it", path)
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise InvalidParameterError(f"{path} has no API key", param="api_key_file")
    return tuple(_entry(entry, number) for number, entry in enumerate(entries, 1))


def _entry(entry: str, number: int) -> ApiKey:
    name, colon, key = entry.partition(":")
    return ApiKey.of(key, name.strip()) if colon else ApiKey.of(entry, f"file-{number}")


def check_keys(keys: Sequence[ApiKey]) -> None:
    """Raises InvalidParameterError where two keys share a name, or two names a key, or there are too many."""
    if len(keys) > _MAX_KEYS:
        raise InvalidParameterError(f"at most {_MAX_KEYS} API keys, got {len(keys)}", param="api_key")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        names = ", ".join(key.name for key in keys)
        raise InvalidParameterError(f"API keys and their names must differ, got {names}", param="api_key")


class KeyRing:
    """Finds the holder of a key. Salts come from a secret of this process, so nobody can reckon them.

    Args:
        share_prefixes: let the holders of different keys use each other's cached prefixes.
    """

    def __init__(self, keys: Sequence[ApiKey], *, share_prefixes: bool = False) -> None:
        secret = secrets.token_bytes(32)
        self._holders = tuple(
            (key.digest, Principal(name=key.name, salt="" if share_prefixes else _salt(secret, key)))
            for key in keys
        )

    @property
    def is_open(self) -> bool:
        return not self._holders

    def find(self, headers: Headers) -> Principal | None:
        """The holder of the key in ``Authorization: Bearer`` or ``X-Api-Key``; None where there is none.

        Every key is compared, whichever matches, so that the time tells nothing.
        """
        if self.is_open:
            return ANONYMOUS
        found = None
        for given in map(_digest, _given(headers)):
            for digest, principal in self._holders:
                if hmac.compare_digest(given, digest):
                    found = principal
        return found


def _given(headers: Headers) -> list[bytes]:
    """The keys a request brings: of each header the last counts, so there are two at most."""
    sent = dict(headers)
    scheme, _, bearer = sent.get(b"authorization", b"").partition(b" ")
    keys = [bearer.strip()] if scheme.lower() == b"bearer" else []
    return [*keys, sent[b"x-api-key"].strip()] if b"x-api-key" in sent else keys


def _salt(secret: bytes, key: ApiKey) -> str:
    return hmac.new(secret, key.digest, hashlib.sha256).hexdigest()[:32]
