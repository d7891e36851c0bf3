"""Burstiness: how far arrivals are from a Poisson process, at which time scales, and how that drifts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, polygamma

from braid.lab.arrays import QUANTILES, Floats, first_of_runs, floats, rounded, run_sums, step_index

WINDOW_S = 1200.0
MIN_GAPS = 50
IDC_WINDOWS_S = (1.0, 10.0, 60.0, 600.0)
CURVE_POINTS = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispersion:
    """Index of dispersion ``Var(N) / E(N)`` of counts in full windows of ``window_s`` (population variance).

    ``judged`` is False where the number means little: the window is shorter than the clock's quantum, or longer than a
    twentieth of the span.
    """

    window_s: float
    idc: float | None
    num_windows: int
    judged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowedGamma:
    """Gaps per window of ``window_s`` from the first arrival; None where a window has under ``MIN_GAPS`` gaps.

    Args:
        start_s: windows with at least one arrival. Shape ``(windows,)``, as all below.
        num: arrivals.
        rate: arrivals per second; a partial last window is divided by its own length.
        cv: sd / mean of the gaps within the window.
        shape: Gamma shape by moments, ``1 / cv^2``.
        scale_s: Gamma scale by moments, ``mean * cv^2``.
        shape_mle: Gamma shape by maximum likelihood; None also on a quantised clock or with gaps of 0, where a density
            has no meaning.
        idc: of counts in full windows of ``idc_window_s`` within the window.
    """

    window_s: float
    idc_window_s: float
    start_s: Floats
    num: tuple[int, ...]
    rate: Floats
    cv: Floats
    shape: Floats
    scale_s: Floats
    shape_mle: Floats
    idc: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Burstiness:
    """Arrivals of the whole trace.

    Args:
        rate: arrivals per second of the span.
        gap_mean_s, gap_cv: of all gaps; ``gap_cv_window`` is the median over the windows.
        gap_zero_share: gaps of exactly 0.
        gap_quantiles_s: at ``arrays.QUANTILES``.
        gap_curve: survival function of the positive gaps: pairs (gap, share of all gaps longer).
        idle_gaps, idle_share: gaps over ten mean gaps and two quanta of the clock, and how much of the span they hold.
        dispersion: at 1, 10, 60, 600 s; ``dispersion_curve`` at many windows.
    """

    rate: float
    gap_mean_s: float | None
    gap_cv: float | None
    gap_cv_window: float | None
    gap_zero_share: float
    gap_quantiles_s: Floats
    gap_curve: tuple[Floats, ...]
    idle_gaps: int
    idle_share: float
    peak_rate_60s: float
    dispersion: tuple[Dispersion, ...]
    dispersion_curve: tuple[Dispersion, ...]
    windows: WindowedGamma


class Ticks(NamedTuple):
    """Arrivals by distinct time: ``at`` ascends, ``num`` arrived then. Shapes ``(ticks,)``. On a clock of whole seconds
    there are far fewer ticks than arrivals."""

    at: np.ndarray
    num: np.ndarray

    @classmethod
    def of(cls, t_s: np.ndarray) -> Ticks:
        first = first_of_runs(t_s)
        return cls(t_s[first], np.diff(first, append=t_s.size))

    @property
    def span_s(self) -> float:
        return float(self.at[-1] - self.at[0])

    def bins(self, step_s: float) -> Bins:
        """Counts per step from the first arrival on."""
        index = step_index(self.at, self.at[0], step_s)
        first = first_of_runs(index)
        return Bins(step_s, index[first], run_sums(self.num, first))


class Bins(NamedTuple):
    """Counts in steps of ``step_s``: ``places`` of those that hold an arrival, ascending, and how many."""

    step_s: float
    places: np.ndarray
    num: np.ndarray

    def coarser(self, times: int) -> Bins:
        index = self.places // times
        first = first_of_runs(index)
        return Bins(self.step_s * times, index[first], run_sums(self.num, first))

    def idc(self, span_s: float) -> float:
        """``Var(N) / E(N)`` over the full steps in ``span_s``."""
        full = int(span_s // self.step_s)
        counts = self.num[: np.searchsorted(self.places, full)].astype(np.float64)
        mean = counts.sum() / full
        return float((counts @ counts / full - mean**2) / mean)


def burstiness(t_s: np.ndarray, quantum_s: float = 0.0) -> Burstiness | None:
    """Describe arrivals. ``t_s`` ascends. None below three arrivals or without time passing."""
    if t_s.size < 3 or t_s[-1] <= t_s[0]:
        return None
    ticks = Ticks.of(t_s)
    span, num = ticks.span_s, t_s.size - 1
    gaps = np.sort(np.diff(ticks.at))
    ties = num - gaps.size
    mean = span / num
    idle = gaps[np.searchsorted(gaps, max(10 * mean, 2 * quantum_s), side="right") :]
    windows = windowed_gamma(ticks, quantum_s)
    measured = [cv for cv in windows.cv if cv is not None]
    return Burstiness(
        rate=float(t_s.size / span),
        gap_mean_s=rounded(mean),
        gap_cv=rounded(float(np.sqrt((((gaps - mean) ** 2).sum() + ties * mean**2) / num) / mean)),
        gap_cv_window=rounded(float(np.median(measured))) if measured else None,
        gap_zero_share=ties / num,
        gap_quantiles_s=floats(_quantiles(gaps, ties, QUANTILES)),
        gap_curve=_survival(gaps, num),
        idle_gaps=idle.size,
        idle_share=float(idle.sum() / span),
        peak_rate_60s=peak_rate(ticks, 60.0),
        dispersion=tuple(_dispersions(ticks, quantum_s)),
        dispersion_curve=dispersion_curve(ticks, quantum_s),
        windows=windows,
    )


def dispersion(ticks: Ticks, window_s: float, quantum_s: float = 0.0) -> Dispersion:
    """Index of dispersion over full windows from the first arrival; the partial last one is dropped. None below two
    full windows."""
    return _dispersion(ticks.bins(window_s), ticks.span_s, quantum_s)


def dispersion_curve(ticks: Ticks, quantum_s: float = 0.0, first_s: float = 0.1) -> tuple[Dispersion, ...]:
    """``dispersion`` at ``first_s`` and its doublings, up to a twentieth of the span; counts are merged."""
    bins, curve = ticks.bins(first_s), []
    while bins.step_s <= ticks.span_s / 20:
        curve.append(_dispersion(bins, ticks.span_s, quantum_s))
        bins = bins.coarser(2)
    return tuple(curve)


def _dispersions(ticks: Ticks, quantum_s: float) -> Iterator[Dispersion]:
    """At ``IDC_WINDOWS_S``, each of which is a multiple of the one before."""
    bins = ticks.bins(IDC_WINDOWS_S[0])
    for window in IDC_WINDOWS_S:
        if window > bins.step_s:
            bins = bins.coarser(int(window / bins.step_s))
        yield _dispersion(bins, ticks.span_s, quantum_s)


def _dispersion(bins: Bins, span_s: float, quantum_s: float) -> Dispersion:
    window, num = bins.step_s, int(span_s // bins.step_s)
    if num < 2:
        return Dispersion(window_s=window, idc=None, num_windows=num, judged=False)
    judged = window >= quantum_s and window <= span_s / 20
    return Dispersion(window_s=window, idc=rounded(bins.idc(span_s)), num_windows=num, judged=judged)


def peak_rate(ticks: Ticks, window_s: float) -> float:
    """The most arrivals in any ``window_s`` that begins at an arrival, per second."""
    before = np.concatenate(([0], np.cumsum(ticks.num)))
    ends = np.searchsorted(ticks.at, ticks.at + window_s, side="left")
    return float((before[ends] - before[:-1]).max() / window_s)


def windowed_gamma(ticks: Ticks, quantum_s: float = 0.0, window_s: float = WINDOW_S) -> WindowedGamma:
    """Gamma parameters of the gaps inside each window."""
    index = step_index(ticks.at, ticks.at[0], window_s)
    first = first_of_runs(index)
    taken, num = index[first], run_sums(ticks.num, first)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, cv, shape_mle = _moments(ticks, first, num, quantum_s)
        shape, scale = 1 / cv**2, mean * cv**2
    spans = np.full(taken.size, window_s)
    spans[-1] = max(ticks.span_s - window_s * float(taken[-1]), 1e-9)
    idc_window = window_s / max(window_s // max(1.0, 10 * quantum_s), 1)
    return WindowedGamma(
        window_s=window_s,
        idc_window_s=idc_window,
        start_s=floats(taken * window_s, 12),
        num=tuple(num.tolist()),
        rate=floats(num / spans),
        cv=floats(cv),
        shape=floats(shape),
        scale_s=floats(scale),
        shape_mle=floats(shape_mle),
        idc=floats(_windowed_idc(ticks, window_s, idc_window, taken)),
    )


def gamma_shape(mean: np.ndarray, mean_log: np.ndarray) -> np.ndarray:
    """Maximum-likelihood shape of a Gamma law from the mean and the mean logarithm (Minka's start, then Newton)."""
    spread = np.log(mean) - mean_log
    shape = (3 - spread + np.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
    for _ in range(4):
        slope = 1 / shape - polygamma(1, shape)
        shape = np.maximum(shape - (np.log(shape) - digamma(shape) - spread) / slope, 1e-9)
    return np.asarray(shape)


def _moments(
    ticks: Ticks, first: np.ndarray, num: np.ndarray, quantum_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, CV and maximum-likelihood Gamma shape of the gaps in each window, whose ticks begin at ``first``; NaN where
    there are too few."""
    last = np.append(first[1:], ticks.at.size) - 1
    gaps = np.where(num - 1 < MIN_GAPS, np.nan, num - 1.0)
    mean = (ticks.at[last] - ticks.at[first]) / gaps
    ties = num - 1 - (last - first)
    positive = np.diff(ticks.at, append=ticks.at[-1])  # from each tick to the next
    across = np.repeat(mean, last - first + 1)
    across -= positive
    across[last] = 0.0  # the gap after a window's last tick leaves it
    cv = np.sqrt((np.add.reduceat(across**2, first) + ties * mean**2) / gaps) / mean
    if quantum_s > 0:
        return mean, cv, np.full(first.size, np.nan)
    positive[last] = 1.0
    mean_log = np.where(ties > 0, -np.inf, np.add.reduceat(np.log(positive), first) / gaps)
    return mean, cv, gamma_shape(mean, mean_log)


def _windowed_idc(ticks: Ticks, window_s: float, step_s: float, taken: np.ndarray) -> np.ndarray:
    """Index of dispersion in steps within each of the windows ``taken``; NaN where under 20 full steps or ``MIN_GAPS``
    arrivals are."""
    steps, length = int(window_s // step_s), int(taken[-1]) + 1
    num_full = int(ticks.span_s // step_s)
    bins = ticks.bins(step_s)
    inside = np.searchsorted(bins.places, num_full)
    owner, counts = bins.places[:inside] // steps, bins.num[:inside].astype(np.float64)
    full = np.full(length, float(steps))
    full[-1] = min(max(num_full - steps * (length - 1), 0), steps)
    full[full < 20] = np.nan
    total = np.bincount(owner, counts, minlength=length)[:length]
    squares = np.bincount(owner, counts**2, minlength=length)[:length]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / full
        return np.asarray(np.where(total > MIN_GAPS, (squares / full - mean**2) / mean, np.nan)[taken])


def _quantiles(ordered: np.ndarray, zeros: int, at: Sequence[float]) -> np.ndarray:
    """Linear between the closest ranks of ``zeros`` zeros and the ``ordered`` positive values."""
    ranks = (zeros + ordered.size - 1) * np.asarray(at)
    low, high = (np.asarray(side(ranks), np.int64) - zeros for side in (np.floor, np.ceil))
    lower, upper = (np.where(place < 0, 0.0, ordered[np.maximum(place, 0)]) for place in (low, high))
    return np.asarray(lower + (upper - lower) * (ranks - zeros - low))


def _survival(ordered: np.ndarray, num: int) -> tuple[Floats, ...]:
    """Of ``num`` gaps, of which the positive ones are ``ordered``."""
    at = np.unique(np.geomspace(ordered[0], ordered[-1], CURVE_POINTS))
    longer = (ordered.size - np.searchsorted(ordered, at, side="right")) / num
    return tuple(floats(pair) for pair in zip(at.tolist(), longer.tolist(), strict=True))
