"""The small statistics on processes whose true values are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from braid.lab.arrays import counted, quantiles
from braid.lab.describe.burst import (
    Ticks,
    burstiness,
    dispersion,
    dispersion_curve,
    gamma_shape,
    windowed_gamma,
)
from braid.lab.describe.failures import failures, wilson
from braid.lab.describe.lengths import length_law
from braid.lab.describe.panels import panels
from braid.lab.describe.programs import block_reuse, gaps, growth, sharing, turns
from braid.lab.describe.rates import calendar, echo, explained, load_series
from braid.lab.describe.relation import relation, spearman
from braid.lab.laws.mixture import fit_mixture, mixture_cdf
from braid.lab.laws.zeta import zeta_exponent
from braid.lab.table import conform


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_poisson_has_an_index_of_dispersion_of_one_at_every_window() -> None:
    times = np.cumsum(rng().exponential(0.05, 200_000))
    for window in (1.0, 10.0, 60.0):
        found = dispersion(Ticks.of(times), window)
        assert found.idc == pytest.approx(1.0, abs=4.5 * (2 / found.num_windows) ** 0.5)
        assert found.judged


def test_the_partial_window_is_dropped() -> None:
    times = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.1, 2.2, 2.3, 2.4])
    assert dispersion(Ticks.of(times), 1.0).idc == 0.0
    assert dispersion(Ticks.of(times), 1.0).num_windows == 2


def test_empty_windows_count() -> None:
    times = np.array([0.0, 0.1, 9.0, 10.0])
    counts = np.array([2, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    assert dispersion(Ticks.of(times), 1.0).idc == pytest.approx(counts.var() / counts.mean(), rel=1e-5)


def test_the_curve_agrees_with_single_windows() -> None:
    times = np.cumsum(rng().gamma(0.3, 1.0, 20_000))
    for point in dispersion_curve(Ticks.of(times)):
        assert point.idc == pytest.approx(dispersion(Ticks.of(times), point.window_s).idc)


@pytest.mark.parametrize("shape", [0.45, 1.0, 3.0])
def test_gamma_shapes_are_recovered_per_window(shape: float) -> None:
    times = np.cumsum(rng().gamma(shape, 0.5 / shape, 12_000))
    found = windowed_gamma(Ticks.of(times))
    moments, likelihood = np.array(found.shape, float)[:-1], np.array(found.shape_mle, float)[:-1]
    assert moments.mean() == pytest.approx(shape, rel=0.1)
    assert likelihood.mean() == pytest.approx(shape, rel=0.05)


def test_gamma_shape_solves_the_likelihood_equation() -> None:
    draws = rng().gamma(2.0, 3.0, 100_000)
    assert gamma_shape(np.array([draws.mean()]), np.array([np.log(draws).mean()]))[0] == pytest.approx(
        2.0, rel=0.02
    )


def test_a_quantised_clock_gets_no_density() -> None:
    times = np.floor(np.cumsum(rng().exponential(0.3, 20_000)) / 3) * 3
    found = burstiness(times, quantum_s=3.0)
    assert found is not None
    assert set(found.windows.shape_mle) == {None}
    assert not found.dispersion[0].judged
    assert found.dispersion[1].judged
    assert found.idle_gaps == 0


def test_too_few_arrivals_are_no_burstiness() -> None:
    assert burstiness(np.array([1.0, 2.0])) is None
    assert burstiness(np.zeros(10)) is None


def test_the_zeta_exponent_is_recovered_within_its_interval() -> None:
    inside = 0
    for seed in range(20):
        exponent, stderr = zeta_exponent(counted(rng(seed).zipf(1.7, 20_000).clip(max=10**7)))
        inside += abs(exponent - 1.7) < 1.96 * stderr
    assert inside >= 16


def test_zeta_data_lie_close_to_the_law_and_others_do_not() -> None:
    law = length_law(counted(rng().zipf(2.2, 30_000).astype(float)), rng())
    assert law is not None
    assert law.zeta.distance.ks < 0.01
    other = length_law(counted(np.rint(rng().lognormal(6, 0.5, 30_000))), rng())
    assert other is not None
    assert other.zeta.distance.ks > 0.4


def test_a_mixture_is_recovered_and_preferred() -> None:
    draws = np.concatenate([rng(1).lognormal(3, 0.4, 12_000), rng(2).lognormal(6, 0.5, 8_000)])
    law = length_law(counted(np.rint(draws)), rng())
    assert law is not None
    assert law.double.weights == pytest.approx((0.6, 0.4), abs=0.02)
    assert np.log(np.array(law.double.medians, float)) == pytest.approx((3, 6), abs=0.03)
    assert law.double.modes == 2
    assert law.bic_gain_per_row is not None
    assert law.bic_gain_per_row > 0.3
    assert law.double_distance.ks < 0.02 < law.single_distance.ks


def test_one_component_is_not_beaten_by_two_on_one() -> None:
    seen = counted(np.rint(rng().lognormal(6, 0.7, 20_000)))
    assert fit_mixture(seen, 1).bic < fit_mixture(seen, 2).bic + 10
    assert mixture_cdf(fit_mixture(seen, 1), seen.values[-1:])[0] == pytest.approx(1.0, abs=1e-3)


def test_weighted_quantiles_are_numpys() -> None:
    draws = rng().integers(1, 50, 999)
    at = (0.0, 0.05, 0.5, 0.99, 1.0)
    assert quantiles(counted(draws), at) == pytest.approx(np.quantile(draws, at))


def test_lengths_need_rows() -> None:
    assert length_law(counted(np.full(100, 7.0)), rng()) is None
    assert length_law(counted(np.full(100, np.nan)), rng()) is None


def test_ranks_and_correlation_are_scipys() -> None:
    from scipy.stats import spearmanr

    first, second = rng(1).integers(0, 40, 500), rng(2).integers(0, 9, 500)
    second = second + first // 8
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, rel=1e-5)
    assert spearman(first, np.ones(500, int)) is None


def test_a_relation_that_is_not_monotone_shows_in_the_band() -> None:
    inputs = rng(1).integers(1, 4000, 40_000)
    outputs = np.where((inputs > 1000) & (inputs < 2000), 400, 100) + rng(2).integers(0, 5, 40_000)
    found = relation(inputs.astype(float), outputs.astype(float))
    assert found is not None
    assert found.quartile_band[1][2] == pytest.approx(402, abs=1)
    assert found.quartile_band[3][2] == pytest.approx(102, abs=1)
    assert sum(found.num) == 40_000
    assert sum(map(sum, found.grid)) == 40_000


def test_a_daily_rhythm_is_explained_by_the_hour_and_noise_is_not() -> None:
    hours = np.arange(24 * 28)
    rhythm = 100 + 80 * np.sin(hours / 24 * 2 * np.pi)
    assert explained(rhythm, 24) == pytest.approx(1.0, abs=0.05)
    assert echo(rhythm, 24) == pytest.approx(1.0)
    noise = rng().poisson(100, hours.size)
    found = explained(noise, 24)
    assert found is not None
    assert found < 0.1
    assert explained(rhythm[:30], 24) is None


def test_the_calendar_counts_every_request_once() -> None:
    times = np.sort(rng().uniform(0, 9.3 * 86400, 5000))
    ones = np.ones(5000)
    found = calendar(times, 10 * ones, np.full(5000, np.nan), 0.0, float(times[-1]))
    assert sum(found.per_day) == 5000
    assert len(found.per_day) == 10
    assert len(found.hour_requests) == 24
    assert found.hour_out_tok[3][4] == 0.0


def test_the_load_series_holds_every_request() -> None:
    times = np.sort(rng().uniform(0, 3000, 9000))
    found = load_series(times, np.full(9000, 5.0), np.full(9000, np.nan))
    assert found.step_s == 10
    assert np.mean(np.array(found.requests, float)) == pytest.approx(3.0, rel=0.02)
    assert np.mean(np.array(found.in_tok, float)) == pytest.approx(15.0, rel=0.02)


def frame(**columns: object) -> pl.DataFrame:
    return conform(pl.DataFrame(columns))


def test_geometric_turns_are_recovered() -> None:
    lengths = rng().geometric(0.3, 4000)
    found = turns(
        frame(program_id=[str(program) for program, length in enumerate(lengths) for _ in range(length)])
    )
    assert found is not None
    assert found.num_programs == 4000
    assert abs(found.geometric_p - 0.3) < 3 * found.geometric_p_stderr
    assert found.geometric_ks < 0.03
    assert sum(found.counts) == 4000
    assert found.single_share == pytest.approx((lengths == 1).mean())


def test_gaps_may_overlap_and_long_ones_hold_the_time() -> None:
    found = gaps(frame(gap_before_s=[None, -2.0, 0.0, 1.0, 3.0, 996.0]))
    assert found is not None
    assert found.num == 5
    assert (found.overlap_share, found.zero_share, found.long_share) == pytest.approx((0.2, 0.2, 0.2))
    assert found.long_time_share == pytest.approx(0.996)
    assert gaps(frame(gap_before_s=pl.Series([None], dtype=pl.Float64))) is None


def test_growth_tells_prompts_that_hold_earlier_turns() -> None:
    columns = {"program_id": ["a"] * 4, "turn": [0, 1, 2, 3], "out_tok": [5, 5, 5, 5]}
    grows = growth(frame(in_tok=[10, 20, 30, 40], **columns))
    stays = growth(frame(in_tok=[10, 11, 12, 9], **columns))
    assert grows is not None
    assert stays is not None
    assert (grows.verdict, stays.verdict) == ("grows", "does not grow")
    assert [row[2:] for row in grows.by_turn][1] == (20.0, 20.0, 20.0)
    assert growth(frame(in_tok=[10, 20], program_id=["a", "b"], out_tok=[1, 1])) is None


def test_block_reuse_needs_the_same_blocks_from_the_start() -> None:
    rows = frame(
        t_s=[0.0, 1.0, 2.0, 3.0],
        in_tok=[400, 300, 250, 200],
        block_ids=[[1, 2, 3, 4], [1, 2, 9], [7, 2, 3], [1, 1]],
    )
    cached, reuse = block_reuse(rows, 100)
    assert cached.tolist() == [0, 200, 0, 100]
    assert reuse[0].block_hit_rate == pytest.approx(3 / 12)
    assert reuse[1].block_hit_rate == pytest.approx(1 / 5)
    assert reuse[0].token_hit_rate == pytest.approx(300 / 1150)


def test_block_reuse_within_programs_only() -> None:
    rows = frame(program_id=["a", "b", "a"], in_tok=[64, 64, 64], block_ids=[[1], [1], [1]])
    assert block_reuse(rows, 64, "global")[0].tolist() == [0, 64, 64]
    assert block_reuse(rows, 64, "program")[0].tolist() == [0, 0, 64]


def test_cached_tokens_stand_in_for_block_ids() -> None:
    found = sharing(frame(in_tok=[100, 200], cached_tok=[0, 150], turn=[0, 1]), None, "program")
    assert found is not None
    assert found.cached_share == pytest.approx(0.5)
    assert found.new_quantiles[4] == 50.0
    assert sharing(frame(in_tok=[1]), None, "global") is None


def test_failures_that_rise_with_load_show() -> None:
    rates = np.repeat([0.05, 0.5, 2.0], 100)
    rng().shuffle(rates)
    times = np.sort(
        np.concatenate([1200 * (at + rng(at).random(int(1200 * r))) for at, r in enumerate(rates)])
    )
    busy = rates[(times // 1200).astype(int)] > 1
    failed = rng().random(times.size) < np.where(busy, 0.2, 0.01)
    found = failures(times, failed, np.ones(times.size, bool), {"ok": 1}, [(failed[busy], busy[busy])])
    assert found.class_share[0] is not None
    assert found.class_share[0] < 0.03
    assert found.class_share[-1] == pytest.approx(0.2, abs=0.01)
    assert found.spearman is not None
    assert found.spearman > 0.5
    assert found.panel_share[0] == pytest.approx(0.2, abs=0.01)


def test_wilsons_interval() -> None:
    low, high = wilson(np.array([0, 5, 10]), np.array([10, 10, 10]))
    assert low == pytest.approx([0, 0.2366, 0.7225], abs=1e-3)
    assert high == pytest.approx([0.2775, 0.7634, 1], abs=1e-3)


def test_panels_are_the_largest_pairs_of_model_and_kind() -> None:
    rows = frame(model=["a", "b", "a", None, "a", "b"], kind=["api", "conv", "api", "api", "conv", "conv"])
    found, codes = panels(rows, most=2)
    assert [panel.name for panel in found] == ["a · API", "b · conversation"]
    assert codes.tolist() == [0, 1, 0, -1, -1, 1]
