from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from braid.lab.distance import idc, ks
from braid.lab.fit.laws import POISSON
from braid.lab.fit.processes import Mmpp, arrivals_until
from braid.lab.fit.programs import turn_gaps
from braid.lab.scale import COMPRESS_WARNING, compress, scale, superpose, thin
from braid.lab.table import Trace, TraceError, TraceInfo, conform

BURSTS = Mmpp(rates=(10.0, 40.0), switch=((0.0, 0.2), (0.2, 0.0)))
SPAN = 20_000.0


def bursty(seed: int, process: Mmpp = BURSTS) -> Trace:
    times = arrivals_until(process, POISSON, np.random.default_rng(seed), SPAN)
    return Trace(conform(pl.DataFrame({"t_s": times})), TraceInfo())


def index(trace: Trace) -> float:
    return idc(trace.frame["t_s"].to_numpy(), 10.0, [(0.0, SPAN)])


@pytest.fixture(scope="module")
def programs() -> Trace:
    rng = np.random.default_rng(0)
    program = np.repeat(np.arange(400), 5)
    turn = np.tile(np.arange(5), 400)
    t = np.repeat(rng.uniform(0, 5000, 400), 5) + np.cumsum(rng.exponential(10, (400, 5)), axis=1).ravel()
    frame = pl.DataFrame({"t_s": t, "turn": turn}).with_columns(
        pl.Series([f"p{p}" for p in program]).alias("program_id"),
        pl.Series([f"p{p - 1}" if p % 10 == 1 else None for p in program]).alias("parent_id"),
        pl.lit("ok").alias("status"),
    )
    return Trace(conform(frame), TraceInfo())


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_thinning_moves_the_index_as_predicted(share: float) -> None:
    trace = bursty(1)
    assert index(thin(trace, share, 3)) == pytest.approx(1 + share * (index(trace) - 1), rel=0.1)


def test_independent_copies_keep_the_index_and_pull_gaps_to_poisson() -> None:
    trace = bursty(2)
    whole = superpose(trace, 4, seed=1, jitter_s=0.0)
    assert whole.num_requests == 4 * trace.num_requests
    assert index(whole) == pytest.approx(index(trace), rel=0.1)
    cvs = [
        float(np.std(gaps) / np.mean(gaps))
        for gaps in (np.diff(t.frame["t_s"].to_numpy()) for t in (trace, whole))
    ]
    assert abs(cvs[1] - 1) < abs(cvs[0] - 1)


def test_amplifying_one_shared_rate_multiplies_the_excess() -> None:
    times = 3
    loud = Mmpp(rates=tuple(times * r for r in BURSTS.rates), switch=BURSTS.switch)
    calm = np.mean([index(bursty(s)) for s in range(4)])
    assert np.mean([index(bursty(s, loud)) for s in range(4)]) == pytest.approx(
        1 + times * (calm - 1), rel=0.1
    )


def test_thinning_is_nested_and_keeps_families_whole(programs: Trace) -> None:
    small, large = (set(thin(programs, share, 7).frame["program_id"]) for share in (0.2, 0.6))
    assert small < large
    kept = thin(programs, 0.5, 7).frame
    assert kept.group_by("program_id").len()["len"].unique().to_list() == [5]
    names = set(kept["program_id"])
    for number in range(0, 400, 10):
        assert (f"p{number}" in names) == (f"p{number + 1}" in names)
    assert len(names) == pytest.approx(200, abs=40)


def test_rows_without_a_program_are_thinned_one_by_one_and_nested() -> None:
    trace = bursty(3)
    small, large = (thin(trace, share, 1).frame["t_s"] for share in (0.1, 0.4))
    assert small.len() / trace.num_requests == pytest.approx(0.1, rel=0.05)
    assert small.is_in(large.implode()).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 10.0])
def test_gaps_between_turns_are_untouched(factor: float, programs: Trace) -> None:
    scaled = scale(programs, factor, seed=4)
    assert scaled.num_requests / programs.num_requests == pytest.approx(factor, rel=0.15)
    assert scaled.frame["t_s"].is_sorted()
    if factor >= 1:
        gaps = [np.round(turn_gaps(t.frame), 6) for t in (scaled, programs)]
        assert ks(gaps[0], gaps[1]) == 0
    original = pl.col("program_id").str.replace(r"\+\d+$", "")
    both = scaled.frame.with_columns(original.alias("was")).join(
        programs.frame, left_on=["was", "turn"], right_on=["program_id", "turn"], suffix="_was"
    )
    assert both.height == scaled.num_requests
    shift = (pl.col("t_s") - pl.col("t_s_was")).round(6)
    assert both.select(shift.n_unique().over("program_id").max()).item() == 1


def test_copies_have_names_of_their_own(programs: Trace) -> None:
    grown = superpose(programs, 3)
    assert grown.num_programs == 3 * programs.num_programs
    parents = grown.frame["parent_id"].drop_nulls().unique()
    assert parents.is_in(grown.frame["program_id"].unique().implode()).all()


def test_compression_says_what_it_does(programs: Trace) -> None:
    squeezed = compress(programs, 10.0)
    assert squeezed.info.notes[-1] == COMPRESS_WARNING
    assert ks(turn_gaps(squeezed.frame), turn_gaps(programs.frame)) > 0.5


def test_senseless_factors_are_named(programs: Trace) -> None:
    for call in (lambda: thin(programs, 0.0), lambda: scale(programs, -1.0), lambda: compress(programs, 0.0),
                 lambda: superpose(programs, 0), lambda: scale(programs, float("nan"))):  # fmt: skip
        with pytest.raises(TraceError):
            call()
