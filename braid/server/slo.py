"""How quickly a client wishes its tokens: fields of the body, or headers for clients that cannot add fields.

A wish is no promise: one that no division of the machine can keep is served all the same, and counted as missed in
``braid_slo_tokens_total``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from pydantic import BaseModel

from braid.core.errors import InvalidParameterError
from braid.core.request import NO_SLO, Slo
from braid.server.guard.body import echo

MAX_SLO_MS = 3_600_000
"""An hour: who waits longer has no wish."""
TTFT, TBT = "slo_ttft_ms", "slo_tbt_ms"
_HEADERS = {TTFT: "x-braid-slo-ttft-ms", TBT: "x-braid-slo-tbt-ms"}
_MAX_CHARS = 32


class SloFields(BaseModel):
    """Milliseconds until the first token, and between two tokens, at most; None for no wish."""

    slo_ttft_ms: float | None = None
    slo_tbt_ms: float | None = None

    def slo(self) -> Slo:
        """Raises InvalidParameterError for what is out of range."""
        if self.slo_ttft_ms is None and self.slo_tbt_ms is None:
            return NO_SLO
        return Slo(_seconds(TTFT, self.slo_ttft_ms), _seconds(TBT, self.slo_tbt_ms))


def with_headers(slo: Slo, headers: Mapping[str, str]) -> Slo:
    """What a request wishes as a whole: where the body is silent, its headers count.

    Raises:
        InvalidParameterError: a header is no number, or out of range.
    """
    return Slo(_either(slo.ttft_s, TTFT, headers), _either(slo.tbt_s, TBT, headers))


def _either(seconds: float, name: str, headers: Mapping[str, str]) -> float:
    header = _HEADERS[name]
    text = headers.get(header)
    if seconds != inf or text is None:
        return seconds
    try:
        value: float | str = float(text) if len(text) <= _MAX_CHARS else text
    except ValueError:
        value = text
    return _seconds(header, value)


def _seconds(name: str, value: float | str | None) -> float:
    if value is None:
        return inf
    if isinstance(value, str) or not 0 < value <= MAX_SLO_MS:
        message = f"{name} must be milliseconds above 0 and at most {MAX_SLO_MS}, got {echo(value)}"
        raise InvalidParameterError(message, param=name)
    return value / 1000
