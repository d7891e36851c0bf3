from __future__ import annotations

import numpy as np
import pytest

from braid.lab.fit.arrivals import fit_arrivals, fit_one
from braid.lab.fit.hawkes import fit_hawkes, likelihood
from braid.lab.fit.laws import POISSON
from braid.lab.fit.observed import Observed, observed
from braid.lab.fit.processes import Hawkes, arrivals, arrivals_until, mean_rate

TRUE = Hawkes(base_rate=0.5, branching=0.7, decay=2.0)
PARAMETERS = {"base_rate": 0.5, "branching": 0.7, "decay": 2.0}


def made(seed: int, span_s: float) -> Observed:
    times = arrivals_until(TRUE, POISSON, np.random.default_rng([seed, 5]), span_s)
    return Observed(times, ((0.0, span_s),))


def hits(seed: int) -> dict[str, bool]:
    found = fit_hawkes(made(seed, 2000.0)).intervals
    return {name: found[name][0] <= true <= found[name][1] for name, true in PARAMETERS.items()}


def test_the_likelihood_is_that_of_the_intensity() -> None:
    times = np.array([1.0, 1.5, 4.0, 11.0, 11.2])
    spans = ((0.0, 5.0), (10.0, 12.0))
    base, branching, decay = 0.4, 0.999 / 2, 1.3
    expected = 0.0
    for start, stop in spans:
        inside = times[(times >= start) & (times < stop)]
        for t in inside:
            past = inside[inside < t]
            expected += np.log(base + branching * decay * np.exp(-decay * (t - past)).sum())
        expected -= base * (stop - start) + branching * (1 - np.exp(-decay * (stop - inside))).sum()
    value = likelihood(Observed(times, spans))(np.array([np.log(base), 0.0, np.log(decay)]))
    assert value == pytest.approx(expected)


def test_generated_arrivals_have_the_rate_and_the_dispersion() -> None:
    data = made(0, 60_000.0)
    assert data.rate == pytest.approx(mean_rate(TRUE), rel=0.05)
    # In the long run the index is 1 / (1 - branching)^2.
    assert data.idc(100.0) == pytest.approx(1 / 0.3**2, rel=0.12)


def test_chunks_rise_and_are_stationary_from_the_start() -> None:
    starts = []
    for seed in range(200):
        source = arrivals(TRUE, POISSON, np.random.default_rng(seed), 5.0)
        times = np.concatenate([next(source) for _ in range(4)])
        assert (np.diff(times) >= 0).all()
        assert times.size == 0 or times[0] >= 0
        starts.append(np.count_nonzero(times < 10))
    assert np.mean(starts) == pytest.approx(10 * mean_rate(TRUE), rel=0.15)


def test_parameters_come_back() -> None:
    found = [hits(seed) for seed in range(6)]
    assert all(sum(h[name] for h in found) >= 4 for name in PARAMETERS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_parameter_is_inside_in_90_of_100_seeds() -> None:
    found = [hits(seed) for seed in range(100)]
    for name in PARAMETERS:
        assert sum(h[name] for h in found) >= 90, name


def test_it_wins_on_its_own_kind() -> None:
    data = observed(made(1, 1200.0).times)
    found = fit_arrivals(data, ("poisson", "gamma", "hawkes"))
    assert found.chosen.name == "hawkes"
    assert set(found.chosen.intervals) == set(PARAMETERS)


def test_too_few_arrivals_are_named() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        fit_hawkes(Observed(np.arange(5.0), ((0.0, 5.0),)))


def test_a_past_too_long_to_be_told_from_drift_is_no_candidate() -> None:
    rate = np.repeat([1.0, 6.0], 500)
    rng = np.random.default_rng(0)
    times = np.sort(np.concatenate([i + rng.random(rng.poisson(r)) for i, r in enumerate(rate)]))
    data = observed(times)
    assert fit_hawkes(data).process.memory_s > 100
    assert fit_one("hawkes", data) is None


def test_arrivals_just_past_their_span_do_no_harm() -> None:
    data = Observed(np.array([0.5, 1.0, 10.5]), ((0.0, 10.0),))
    assert np.isfinite(likelihood(data)(np.array([0.0, 0.0, 20.0])))
