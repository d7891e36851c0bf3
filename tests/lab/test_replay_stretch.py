from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from braid.lab.replay.planning.stretch import window_start
from braid.lab.table import Trace, TraceError, TraceInfo, conform


def trace_of(loads: tuple[int, ...], first: float = 100.0) -> Trace:
    """``loads[i]`` requests in the ``i``-th ten seconds."""
    times = [first + 10.0 * place + 9.0 * n / load for place, load in enumerate(loads) for n in range(load)]
    times.append(first + 10.0 * len(loads))
    return Trace(conform(pl.DataFrame({"t_s": times})), TraceInfo(source="t"))


LOADS = (5, 50, 6, 20, 1, 60, 21, 19, 55)


def load_at(trace: Trace, start: float) -> int:
    times = trace.frame["t_s"].to_numpy()
    return int(((times >= start) & (times < start + 10)).sum())


def test_a_random_stretch_is_drawn_by_the_seed_not_the_first() -> None:
    trace = trace_of(LOADS)
    starts = [window_start(trace, 10.0, "random", seed) for seed in range(40)]
    assert starts == [window_start(trace, 10.0, "random", seed) for seed in range(40)]
    assert set(starts) == {100.0 + 10.0 * n for n in range(9)}


@pytest.mark.parametrize(("which", "low", "high"), [("low", 1, 6), ("middle", 19, 21), ("high", 50, 60)])
def test_strata_of_load(which: str, low: int, high: int) -> None:
    trace = trace_of(LOADS)
    loads = {load_at(trace, window_start(trace, 10.0, which, seed)) for seed in range(40)}  # type: ignore[arg-type]
    assert loads == {load for load in LOADS if low <= load <= high}


def test_empty_stretches_are_not_drawn() -> None:
    starts = {window_start(trace_of((3, 0, 0, 4)), 10.0, "random", seed) for seed in range(20)}
    assert starts == {100.0, 130.0}


@pytest.mark.parametrize(
    ("trace", "span", "which"),
    [
        (trace_of((3, 2)), 30.0, "random"),
        (trace_of((3, 2)), 10.0, "high"),
        (trace_of((3, 2)), 0.0, "random"),
        (Trace(conform(pl.DataFrame({"in_tok": np.ones(3, int)})), TraceInfo(source="t")), 1.0, "random"),
    ],
)
def test_what_is_too_short_is_named(trace: Trace, span: float, which: str) -> None:
    with pytest.raises(TraceError, match=r"^t: "):
        window_start(trace, span, which, 0)  # type: ignore[arg-type]
