"""Which earlier request's conversation a request continues, where the history is live."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.replay.planning.plan import PLAN_SCHEMA

NONE = -1


def previous_turns(plan: pl.DataFrame) -> NDArray[np.int64]:
    """For each request of a plan the one before it in its program, or ``NONE``.

    Only where its prompt begins with that one's prompt and reply (``shared_tok``), and where that one has ended by
    then: it, or something that waited for it, is waited for.
    """
    after: list[list[int]] = plan["after"].to_list()
    programs, shared = plan["program"].to_list(), plan["shared_tok"].to_list()
    whole = (plan["in_tok"] + plan["out_tok"]).to_list()
    found = np.full(plan.height, NONE, np.int64)
    latest: dict[str, int] = {}
    for number, program in enumerate(programs):
        before = latest.get(program, NONE)
        latest[program] = number
        if before != NONE and shared[number] == whole[before] and _has_ended(before, number, after):
            found[number] = before
    return found


def waiting_for(plan: pl.DataFrame, history: NDArray[np.int64]) -> pl.DataFrame:
    """The plan, in which a request waits itself for the one that it continues.

    This changes no time: that one has ended by then in any case.
    """
    lists = [
        before if one == NONE or one in before else [one, *before]
        for before, one in zip(plan["after"].to_list(), history.tolist(), strict=True)
    ]
    return plan.with_columns(pl.Series("after", lists, dtype=PLAN_SCHEMA["after"]))


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
