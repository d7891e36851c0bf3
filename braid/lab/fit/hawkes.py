"""Self-exciting arrivals (Hawkes 1971) with an exponential kernel: exact likelihood by Ogata's recursion.

Intensity ``base + branching * decay * sum exp(-decay (t - t_i))`` over the arrivals before t: each one causes
``branching`` more on average, ``1 / decay`` seconds later on average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

from braid.lab.distance import Floats
from braid.lab.fit.laws import Z95, hessian
from braid.lab.fit.observed import Observed
from braid.lab.fit.processes import Hawkes

MAX_ARRIVALS = 6_000
"""With more than these the first of them are looked at."""
MOST_BRANCHING = 0.999


class FittedHawkes(NamedTuple):
    process: Hawkes
    intervals: dict[str, tuple[float, float]]
    log_likelihood: float
    num: int


def _unpack(theta: Floats) -> tuple[float, float, float]:
    """Base rate, branching and decay from two logarithms and a logit between them."""
    base, logit, decay = (float(x) for x in np.clip(theta, -20, 20))
    return float(np.exp(base)), MOST_BRANCHING / (1 + float(np.exp(-logit))), float(np.exp(decay))


def likelihood(data: Observed) -> Callable[[Floats], float]:
    """Log-likelihood of (log base rate, logit of branching, log decay); each span begins without a past."""
    times, spans = data.times, data.spans
    owner = np.searchsorted([start for start, _ in spans], times, "right") - 1
    first = np.concatenate([[True], np.diff(owner) != 0])
    gaps = np.concatenate([[0.0], np.diff(times)])
    # Arrivals spread inside a coarse tick may lie just past their span.
    left = np.maximum(np.array([stop for _, stop in spans])[owner] - times, 0.0)
    covered = data.covered_s

    def value(theta: Floats) -> float:
        base, branching, decay = _unpack(theta)
        fades = np.where(first, 0.0, np.exp(-decay * gaps)).tolist()
        pull, pulls = 0.0, []
        for fade in fades:
            pull = fade * (1.0 + pull)
            pulls.append(pull)
        intensity = base + branching * decay * np.array(pulls)
        expected = base * covered - branching * float(np.expm1(-decay * left).sum())
        return float(np.log(intensity).sum()) - expected

    return value


def fit_hawkes(data: Observed) -> FittedHawkes:
    """Maximum likelihood with 95 % intervals. The clock must be exact: ties excite one another without end.

    Raises:
        ValueError: under 20 arrivals.
    """
    if data.times.size < 20:
        raise ValueError(f"a self-exciting process needs at least 20 arrivals, got {data.times.size}")
    if data.times.size > MAX_ARRIVALS:
        end = float(data.times[MAX_ARRIVALS])
        data = data.within(tuple((a, min(b, end)) for a, b in data.spans if a < end))
    value, num = likelihood(data), data.times.size
    # Half of the arrivals are caused, within two gaps or within fifty.
    starts = [np.array([np.log(data.rate / 2), 0.0, np.log(data.rate / gaps)]) for gaps in (2, 50)]
    best = min(
        (optimize.minimize(lambda x: -value(x) / num, start, method="Nelder-Mead",
                           options={"xatol": 1e-4, "fatol": 1e-8, "maxiter": 400}) for start in starts),
        key=lambda found: float(found.fun),
    )  # fmt: skip
    theta = np.asarray(best.x)
    spread = np.linalg.pinv(hessian(lambda x: -value(x), theta, 3e-3))
    half = Z95 * np.sqrt(np.maximum(np.diag(spread), 0))
    low, middle, high = (_unpack(theta + side * half) for side in (-1, 0, 1))
    names = ("base_rate", "branching", "decay")
    return FittedHawkes(
        process=Hawkes(**dict(zip(names, middle, strict=True))),
        intervals={name: (low[i], high[i]) for i, name in enumerate(names)},
        log_likelihood=-float(best.fun) * num,
        num=num,
    )
