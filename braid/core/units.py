"""Bytes and shares as people write them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from braid.core.errors import InvalidParameterError

UNITS: Final = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """``2GiB`` -> 2147483648; a bare number is bytes.

    Raises:
        InvalidParameterError: naming the units there are.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise InvalidParameterError(f"{text!r} is not a size; write for example 512MiB, 2GiB or 2.5GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


class Amount(NamedTuple):
    """A size in bytes, or a share of something; both None: as much as there is room for."""

    num_bytes: int | None = None
    share: float | None = None

    def of(self, whole: int) -> int | None:
        """Bytes, where all of it has ``whole``."""
        return self.num_bytes if self.share is None else round(self.share * whole)


def parse_amount(value: str | int, param: str) -> Amount:
    """``6GiB``, ``25%``, ``auto`` or a number of bytes.

    Raises:
        InvalidParameterError: it is none of these, or nothing.
    """
    valid = "a size such as 6GiB, a share such as 25%, or auto"
    if isinstance(value, str) and value.strip().lower() == "auto":
        return Amount()
    try:
        amount = _amount(value)
    except ValueError:
        raise InvalidParameterError(f"{param} must be {valid}, got {value!r}", param=param) from None
    if not (amount.num_bytes or amount.share):
        raise InvalidParameterError(f"{param} must be more than nothing, got {value!r}", param=param)
    return amount


def _amount(value: str | int) -> Amount:
    """Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(value)
    if isinstance(value, str):
        percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
        return (
            Amount(num_bytes=parse_bytes(value)) if percent is None else Amount(share=float(percent[1]) / 100)
        )
    if value < 0:
        raise ValueError(value)
    return Amount(num_bytes=value)
