"""``braid top``: a running server as seen through ``/metrics`` and ``/v1/sessions``."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from braid.cli.top_data import History, parse
from braid.cli.top_view import frame
from braid.core.errors import BraidError, InvalidParameterError

_TIMEOUT = 5.0
_WINDOW_LOOKS = 10
_SHORTEST_WINDOW = 10.0
_MOST_SESSIONS = 1000


class UnreachableError(BraidError):
    """Nobody answers; that may change."""


class Watcher:
    """Asks one server.

    Raises:
        InvalidParameterError: ``url`` is no HTTP address, or ``interval`` is not positive.
    """

    def __init__(self, url: str, api_key: str | None, interval: float) -> None:
        self.url = _base(url)
        if not interval >= 0.1:
            raise InvalidParameterError(f"interval must be >= 0.1 s, got {interval:g}", param="interval")
        self.interval = interval
        self.history = History(max(_SHORTEST_WINDOW, _WINDOW_LOOKS * interval))
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def look(self) -> None:
        """Ask once.

        Raises:
            UnreachableError: nobody answers there.
            BraidError: whoever answers is no Braid server, or asks for another key.
        """
        text = self._get("/metrics")
        if text is None or "braid_engine_up" not in text:
            raise BraidError(f"{self.url}/metrics is not Braid's")
        self.history.add(parse(text, time.monotonic()))
        self.history.sessions = _sessions(self._get(f"/v1/sessions?limit={_MOST_SESSIONS}"))

    def _get(self, path: str) -> str | None:
        """The body of an answer; None for a path that does not exist."""
        request = urllib.request.Request(self.url + path, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            self._refuse(path, error)
            return None
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", None) or cause
            raise UnreachableError(f"cannot reach {self.url}: {reason}") from None
        return body.decode("utf-8", "replace")

    def _refuse(self, path: str, error: urllib.error.HTTPError) -> None:
        with error:
            if error.code in (401, 403):
                raise BraidError(f"{self.url} does not take this API key; give the right one with --api-key")
            if error.code in (404, 405):
                return
            raise UnreachableError(f"{self.url}{path} answers with status {error.code}")


def _base(url: str) -> str:
    """The address without path; a bare ``host:port`` is HTTP."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidParameterError(f"url must look like http://127.0.0.1:8000, got {url!r}", param="url")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _sessions(text: str | None) -> list[dict[str, Any]] | None:
    try:
        answer = json.loads(text or "null")
    except ValueError:
        return None
    data = answer.get("data") if isinstance(answer, dict) else None
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else None


def top(url: str, *, api_key: str | None, interval: float, once: bool) -> int:
    """Show frames until interrupted; with ``once``, one frame over one interval.

    Raises:
        BraidError: with ``once`` nobody answers, or what answers is no Braid server.
    """
    watcher = Watcher(url, api_key, interval)
    console = Console()
    if once:
        watcher.look()
        time.sleep(interval)
        watcher.look()
        console.print(frame(watcher.history, watcher.url, console))
        return 0
    _live(watcher, console)
    return 0


def _live(watcher: Watcher, console: Console) -> None:
    problem: str | None = None
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                watcher.look()
                problem = None
            except UnreachableError as error:
                problem = f"{error}; trying again every {watcher.interval:g} s"
            live.update(frame(watcher.history, watcher.url, console, problem), refresh=True)
            time.sleep(watcher.interval)
