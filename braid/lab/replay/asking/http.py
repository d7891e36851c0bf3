"""Asking a server a few things: the standard library's HTTP client, one connection per question, nothing hurried.

Whatever answers is untrusted: sizes and times are bounded, and its words are cleaned before anybody prints them.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from braid import __version__
from braid.core.errors import BraidError

_MAX_ANSWER = 32 * 2**20
_PIECE = 64 * 2**10
_MAX_TRIES = 20
_BUSY = (429, 503)


class TargetError(BraidError, ValueError):
    """A server is not there, or lacks what a replay needs; the text says what was tried."""


class Endpoint(NamedTuple):
    """A base URL in parts. ``root`` is the path before ``/v1``, without a slash at its end."""

    tls: bool
    host: str
    port: int
    root: str

    @property
    def netloc(self) -> str:
        """As in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.netloc}{self.root}"


def endpoint(url: str) -> Endpoint:
    """The parts of a base URL, with or without ``/v1``.

    Raises:
        TargetError: it is no http or https URL, or has parts that mean nothing here.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TargetError(f"{clean(url)!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise TargetError(f"the URL must be like http://HOST:PORT, got {clean(url)!r}")
    if parts.query or parts.fragment or parts.username is not None:
        raise TargetError("the URL may have a host, a port and a path only; give a key as the API key")
    if not host.isascii() or not all(char.isprintable() and char != " " for char in host):
        raise TargetError(f"{clean(host)!r} is no host name")
    tls = parts.scheme == "https"
    root = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._").removesuffix("/v1").rstrip("/")
    return Endpoint(tls, host, port or (443 if tls else 80), root)


def clean(text: object, limit: int = 200) -> str:
    """One printable line of at most ``limit`` characters."""
    line = " ".join(str(text)[: 4 * limit].split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def dig(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and places; None where anything on it is not there."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
    return value


def count_at(value: Any, *path: str | int) -> int | None:
    """A whole number >= 0 at a path, else None."""
    found = dig(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        return parse(self.body)

    @property
    def reason(self) -> str:
        """What the server says, in one line, for errors."""
        if not self.ok:
            said = self.json
            for path in (("error", "message"), ("message",), ("detail",), ("error",)):
                if isinstance(text := dig(said, *path), str) and text:
                    return f"{self.status}: {clean(text)}"
        text = clean(self.body[:1000].decode("utf-8", "replace"), 80)
        kind = "a web page" if text.lower().startswith(("<!doctype", "<html")) else repr(text)
        return f"{self.status} with {kind if text else 'an empty body'}"


def parse(raw: bytes) -> Any:
    """JSON, or None."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


class Asker:
    """Asks one server.

    Args:
        place: where it is.
        api_key: sent as a bearer token.
        timeout_s: for one whole answer; a server that is busy (429, 503) is asked again for as long.

    Raises:
        TargetError: the key cannot be in a header.
    """

    def __init__(self, place: Endpoint, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self.place = place
        self._timeout_s = timeout_s
        self._headers = {"User-Agent": f"braid-lab/{__version__}", "Connection": "close"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable() and api_key):
                raise TargetError("the API key must be printable ASCII characters, without line breaks")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._tls = ssl.create_default_context() if place.tls else None

    def get(self, path: str, timeout_s: float | None = None) -> Answer:
        return self._patient("GET", path, None, timeout_s or self._timeout_s)

    def post(self, path: str, body: bytes | Mapping[str, Any], timeout_s: float | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._patient("POST", path, raw, timeout_s or self._timeout_s)

    def maybe(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer | None:
        """For what a server need not have: None where it does not answer well, and soon."""
        soon = min(10.0, self._timeout_s)
        try:
            answer = self.get(path, soon) if method == "GET" else self.post(path, body or {}, soon)
        except TargetError:
            return None
        return answer if answer.ok else None

    def _patient(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        give_up = time.monotonic() + timeout_s
        for _ in range(_MAX_TRIES):
            answer = self._once(method, path, body, timeout_s)
            wait = _retry_after(answer)
            if answer.status not in _BUSY or time.monotonic() + wait > give_up:
                break
            time.sleep(wait)
        return answer

    def _once(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        where = f"{self.place.url}{path}"
        try:
            return self._exchange(method, path, body, timeout_s)
        except TimeoutError:
            raise TargetError(f"{where} gave no answer within {timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise TargetError(f"cannot speak TLS with {where}: {clean(error)}") from None
        except http.client.HTTPException as error:
            text = clean(error) or type(error).__name__
            raise TargetError(f"{where} answers with something that is not HTTP: {text}") from None
        except OSError as error:
            text = clean(error.strerror or error)
            raise TargetError(f"cannot reach {where}: {text}; is the server running?") from None

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        connection = self._connection(timeout_s)
        end = time.monotonic() + timeout_s
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            connection.request(method, self.place.root + path, body, headers)
            response = connection.getresponse()
            raw = _read(response, end)
        finally:
            connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, raw)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self.place.host, self.place.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    """The whole body, within time and size."""
    pieces, size = [], 0
    while piece := response.read1(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > end:
            raise TimeoutError
        if size > _MAX_ANSWER:
            raise http.client.HTTPException(f"an answer of more than {_MAX_ANSWER >> 20} MiB")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _retry_after(answer: Answer) -> float:
    """Seconds to wait; what is no number (a date, say) counts as one second."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1.0
