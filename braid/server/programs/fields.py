"""Reading fields that many clients send in many shapes: what is absent is None, a wrong type is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.server.guard.body import echo

_TTL = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_UNITS = {"ms": 1e-3, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_COUNT = 2**53


def wrong(path: str, valid: str, value: object) -> InvalidParameterError:
    return InvalidParameterError(
        f"{path} must be {valid}, got {echo(value)}", param=path.partition(".")[0].partition("[")[0]
    )


def dig(body: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where any part of it is absent or null.

    Raises:
        InvalidParameterError: what should hold the field is no object.
    """
    value: Any = body
    seen = ""
    for name in path.split("."):
        if not isinstance(value, Mapping):
            raise wrong(seen, "an object", value)
        value = value.get(name)
        if value is None:
            return None
        seen = f"{seen}.{name}" if seen else name
    return value


def ttl(value: object, path: str) -> float:
    """Seconds, from a number of seconds or a text such as ``5m`` or ``1h``."""
    if _is_number(value):
        seconds = float(value)  # type: ignore[arg-type]
    else:
        match = _TTL.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if match is None:
            raise wrong(path, "seconds, or a time such as '5m' or '1h'", value)
        seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 <= seconds < math.inf:
        raise wrong(path, "a time >= 0", value)
    return seconds


def milliseconds(value: object, path: str) -> float:
    """Seconds, from a number of milliseconds."""
    if not _is_number(value) or not 0 <= float(value) < math.inf:  # type: ignore[arg-type]
        raise wrong(path, "milliseconds >= 0", value)
    return float(value) / 1000  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18


def count(value: object, path: str) -> int:
    """A whole number >= 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_COUNT:
        raise wrong(path, "an integer >= 0", value)
    return value


def integer(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise wrong(path, "a 32-bit integer", value)
    return value


def flag(value: object, path: str) -> bool:
    """True or false, also as the texts and numbers that headers and argument lists make of them."""
    text = value.strip().lower() if isinstance(value, str) else value
    for meaning, spellings in ((True, (True, 1, "true", "1")), (False, (False, 0, "false", "0", ""))):
        if any(text == spelling for spelling in spellings):
            return meaning
    raise wrong(path, "true or false", value)


def text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise wrong(path, "a string", value)
    return value
