from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.lab.compare import Part, Row, compare, passed
from braid.lab.distance import conditional_ks, idc, ks, ks_interval, rescaled_gaps, usable_windows
from braid.lab.fit.laws import POISSON
from braid.lab.fit.observed import alternate
from braid.lab.fit.processes import Constant, Mmpp, Process, arrivals_until
from braid.lab.fit.trace import fit_trace
from braid.lab.generate import Plan, generate_trace
from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceInfo, conform

BURSTS = Mmpp(rates=(2.0, 12.0), switch=((0.0, 0.05), (0.1, 0.0)))
CALM = Constant(rate=16 / 3)


def made(process: Process, seed: int, lengths: float = 100.0, span_s: float = 3000.0) -> Trace:
    rng = np.random.default_rng(seed)
    times = arrivals_until(process, POISSON, rng, span_s)
    inputs = rng.integers(1, 1000, times.size)
    outputs = np.where(inputs > 500, 400, 50) + rng.exponential(lengths, times.size).astype(int) + 1
    return Trace(conform(pl.DataFrame({"t_s": times, "in_tok": inputs, "out_tok": outputs})), TraceInfo())


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_a_copy_from_the_same_law_passes() -> None:
    rows = compare(Part(trace=made(BURSTS, 1)), Part(trace=made(BURSTS, 2, span_s=30_000.0)))
    assert passed(rows), rows


def test_poisson_arrivals_fail_on_dispersion() -> None:
    rows = by_name(compare(Part(trace=made(BURSTS, 1)), Part(trace=made(CALM, 2))))
    assert not rows["IDC ratio 60 s"].passed
    assert rows["KS input tokens"].passed


def test_wrong_lengths_and_a_lost_dependence_fail() -> None:
    real, other = made(BURSTS, 1), made(BURSTS, 2, lengths=300.0)
    rows = by_name(compare(Part(trace=real), Part(trace=other)))
    assert not rows["KS output tokens"].passed
    shuffled = made(BURSTS, 2)
    mixed = shuffled.frame.with_columns(pl.col("out_tok").shuffle(seed=1))
    rows = by_name(compare(Part(trace=real), Part(trace=Trace(mixed, shuffled.info))))
    assert rows["KS output tokens"].passed
    assert not rows["KS output given input"].passed


def test_the_floor_is_the_distance_of_the_real_parts() -> None:
    real = made(BURSTS, 1)
    spans = ((0.0, 3000.0),)
    train, held = (Part(trace=real, spans=alternate(spans, 180.0, part)) for part in (0, 1))
    rows = by_name(compare(held, Part(trace=made(BURSTS, 2)), train))
    row = rows["KS input tokens"]
    assert row.floor == ks(train.frame()["in_tok"].to_numpy(), held.frame()["in_tok"].to_numpy())
    assert row.bound == pytest.approx(row.floor + 0.03)
    assert rows["IDC ratio 1 s"].floor == pytest.approx(1.0, abs=0.3)


def test_a_statistic_that_the_copy_lacks_fails() -> None:
    real, other = made(BURSTS, 1), made(BURSTS, 2)
    bare = other.frame.with_columns(pl.lit(None, pl.Int64).alias("in_tok"))
    rows = by_name(compare(Part(trace=real), Part(trace=Trace(bare, other.info))))
    assert not rows["KS input tokens"].passed


def test_ks_of_known_samples() -> None:
    assert ks(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert ks(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert ks(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0])) == 0.5
    assert np.isnan(ks(np.empty(0), np.ones(3)))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=2000), rng.normal(0.5, size=2000)
    found = ks_interval(a, b, rng)
    assert found.low <= 0.1974 <= found.high  # 2 Phi(1/4) - 1


def test_index_of_dispersion_counts_full_windows_only() -> None:
    times = np.array([0.0, 0.1, 0.2, 1.5, 2.9])
    assert idc(times, 1.0, [(0.0, 2.95)]) == pytest.approx(np.var([3, 1]) / np.mean([3, 1]))
    assert np.isnan(idc(np.empty(0), 1.0))
    assert usable_windows(3.0, 3600.0) == [10.0, 60.0]
    assert usable_windows(0.0, 100_000.0) == [1.0, 10.0, 60.0, 600.0]


def test_rescaled_gaps_of_a_drifting_poisson_process_look_exponential() -> None:
    rng = np.random.default_rng(0)
    slow, fast = np.cumsum(rng.exponential(1.0, 3000)), np.cumsum(rng.exponential(0.1, 30_000))
    gaps = rescaled_gaps(np.r_[slow, slow[-1] + fast], 300.0)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)


def test_conditional_ks_of_bins_that_are_never_reached_is_one() -> None:
    x = np.arange(1000.0)
    assert conditional_ks((x, x), (x, x)).mean == 0
    assert conditional_ks((x, x), (x[:100], x[:100])).worst == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "slack"), [("conv", 0.25), ("code", 0.40)])
def test_held_out_time_of_real_traffic(name: str, slack: float, shared_data: Path) -> None:
    trace = read_trace(shared_data / f"traces/azure/AzureLLMInferenceTrace_{name}_2023.csv")
    spans = ((0.0, trace.span_s + 1e-3),)
    train, held = (alternate(spans, 180.0, part) for part in (0, 1))
    profile = fit_trace(trace, spans=train, laws=False)
    parts = Part(trace=trace, spans=held), Part(trace=trace, spans=train)
    verdicts = {}
    for which in ("chosen", "poisson", "gamma"):
        made_up = generate_trace(profile, Plan(seed=7, span_s=24 * trace.span_s, arrivals=which))
        verdicts[which] = compare(parts[0], Part(trace=made_up), parts[1], idc_slack=slack)
    assert passed(verdicts["chosen"]), verdicts["chosen"]
    for which in ("poisson", "gamma"):
        assert not by_name(verdicts[which])["IDC ratio 60 s"].passed
