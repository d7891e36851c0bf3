"""Panels: the paper draws every figure once per model and kind of request; so does the lab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    model, kind = _Words.of(frame["model"]), _Words.of(frame["kind"])
    pairs = model.codes * len(kind.words) + kind.codes if len(kind.words) > 1 else model.codes
    counts = np.bincount(pairs, minlength=len(model.words) * len(kind.words))
    sizes = [
        (int(count), model.words[pair // len(kind.words)], kind.words[pair % len(kind.words)], pair)
        for pair, count in enumerate(counts)
        if count
    ]
    sizes.sort(key=lambda size: (-size[0], *((word is not None, word or "") for word in size[1:3])))
    found = tuple(
        Panel(name=_name(model, kind), model=model, kind=kind, num_requests=num, share=num / frame.height)
        for num, model, kind, _ in sizes[:most]
    )
    code_of = np.full(counts.size, -1, np.int8)
    for code, (*_, pair) in enumerate(sizes[:most]):
        code_of[pair] = code
    return found, code_of[pairs]


class _Words(NamedTuple):
    """A column of few words: its distinct words, and per row the word's place among them."""

    words: list[str | None]
    codes: np.ndarray

    @classmethod
    def of(cls, column: pl.Series) -> _Words:
        if column.null_count() == column.len():
            return cls([None], np.zeros(column.len(), np.int64))
        if isinstance(column.dtype, pl.Enum):
            words: list[str | None] = list(column.dtype.categories)
            codes = column.to_physical()
        else:
            found = column.unique(maintain_order=True)
            words, codes = (
                found.drop_nulls().to_list(),
                column.cast(pl.Enum(found.drop_nulls())).to_physical(),
            )
        places = codes.fill_null(len(words)).to_numpy().astype(np.int64)
        return cls([*words, None], places)


def _name(model: str | None, kind: str | None) -> str:
    words = {"conv": "conversation", "api": "API", "agent": "agent"}
    parts = [part for part in (model, words.get(kind or "")) if part]
    return " · ".join(parts) or "all requests"
