"""Which earlier request's conversation a request continues, where the history is live."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

NONE = -1


def previous_turns(plan: pl.DataFrame) -> NDArray[np.int64]:
    """For each request of a plan the one before it in its program, or ``NONE``.

    Only where the plan says that it is continued (``shared_tok``) and that it has ended by then: it, or something
    that waited for it, is waited for.
    """
    after: list[list[int]] = plan["after"].to_list()
    programs, shared = plan["program"].to_list(), plan["shared_tok"].to_list()
    found = np.full(plan.height, NONE, np.int64)
    latest: dict[str, int] = {}
    order = plan.select(pl.arg_sort_by("turn", "request", nulls_last=True)).to_series().to_list()
    for number in order:
        program = programs[number]
        before = latest.get(program, NONE)
        latest[program] = number
        if before != NONE and shared[number] and _has_ended(before, number, after):
            found[number] = before
    return found


def _has_ended(before: int, number: int, after: Sequence[Sequence[int]]) -> bool:
    """Whether ``number`` waits for ``before``, itself or through others. Nothing waits for a later number."""
    seen: set[int] = set()
    open_ends = list(after[number])
    while open_ends:
        one = open_ends.pop()
        if one == before:
            return True
        if one > before and one not in seen:
            seen.add(one)
            open_ends += after[one]
    return False
