"""Panels: the paper draws every figure once per model and kind of request; so does the lab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

MOST_PANELS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Requests of one model and kind. ``share`` is of the trace's rows."""

    name: str
    model: str | None
    kind: str | None
    num_requests: int
    share: float


def panels(frame: pl.DataFrame, most: int = MOST_PANELS) -> tuple[tuple[Panel, ...], np.ndarray]:
    """The largest panels, and each row's: ``(panels, codes)``; codes of shape ``(rows,)``, -1 for those left out."""
    keys = ["model", "kind"]
    sizes = frame.group_by(keys).len("num").sort("num", "model", "kind", descending=[True, False, False])
    found = tuple(
        Panel(
            name=_name(row["model"], row["kind"]),
            model=row["model"],
            kind=row["kind"],
            num_requests=row["num"],
            share=row["num"] / frame.height,
        )
        for row in sizes.head(most).iter_rows(named=True)
    )
    if sizes.height == 1:
        return found, np.zeros(frame.height, dtype=np.int8)
    codes = np.full(frame.height, -1, dtype=np.int8)
    for code, panel in enumerate(found):
        codes[frame.select(_is(keys, (panel.model, panel.kind)).alias("in"))["in"].to_numpy()] = code
    return found, codes


def _is(keys: list[str], values: tuple[str | None, str | None]) -> pl.Expr:
    matches = [
        pl.col(key).cast(pl.String).eq_missing(pl.lit(value)) for key, value in zip(keys, values, strict=True)
    ]
    return matches[0] & matches[1]


def _name(model: str | None, kind: str | None) -> str:
    words = {"conv": "conversation", "api": "API", "agent": "agent"}
    parts = [part for part in (model, words.get(kind or "")) if part]
    return " · ".join(parts) or "all requests"
