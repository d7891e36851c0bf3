"""Numbers as lines of JSON may hold them, and the row numbers beside them."""

from __future__ import annotations

from typing import Annotated

import msgspec
import polars as pl

from braid.lab.readers.bad import Problems
from braid.lab.readers.csvfile import ROW

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Length = Annotated[float, msgspec.Meta(ge=0)]
"""A finite number that is not negative (JSON has neither NaN nor infinity)."""

Ids = list[Count]


def with_rows(frame: pl.DataFrame, numbers: list[int], problems: Problems) -> pl.DataFrame:
    """Keep the source's row numbers where rows were left out."""
    if not problems.num_rows:
        return frame
    return frame.with_columns(pl.Series(ROW, numbers, dtype=pl.UInt32))
