"""Burstiness: how far arrivals are from a Poisson process, at which time scales, and how that drifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, polygamma

from braid.lab.describe.arrays import QUANTILES, Floats, floats, rounded

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


def burstiness(t_s: np.ndarray, quantum_s: float = 0.0) -> Burstiness | None:
    """Describe arrivals. ``t_s`` ascends. None below three arrivals or without time passing."""
    if t_s.size < 3 or t_s[-1] <= t_s[0]:
        return None
    gaps, span = np.diff(t_s), float(t_s[-1] - t_s[0])
    windows = windowed_gamma(t_s, quantum_s)
    measured = [cv for cv in windows.cv if cv is not None]
    idle = gaps > max(10 * gaps.mean(), 2 * quantum_s)
    return Burstiness(
        rate=float(t_s.size / span),
        gap_mean_s=rounded(gaps.mean()),
        gap_cv=rounded(variation(gaps)),
        gap_cv_window=rounded(float(np.median(measured))) if measured else None,
        gap_zero_share=float((gaps == 0).mean()),
        gap_quantiles_s=floats(np.quantile(gaps, QUANTILES)),
        gap_curve=_survival(gaps),
        idle_gaps=int(idle.sum()),
        idle_share=float(gaps[idle].sum() / span),
        peak_rate_60s=peak_rate(t_s, 60.0),
        dispersion=tuple(dispersion(t_s, window, quantum_s) for window in IDC_WINDOWS_S),
        dispersion_curve=dispersion_curve(t_s, quantum_s),
        windows=windows,
    )


def variation(gaps: np.ndarray) -> float:
    """Coefficient of variation, ``sd / mean`` (population sd); NaN without gaps or with a mean of 0."""
    return float(gaps.std() / gaps.mean()) if gaps.size and gaps.mean() > 0 else float("nan")


def dispersion(t_s: np.ndarray, window_s: float, quantum_s: float = 0.0) -> Dispersion:
    """Index of dispersion over full windows from the first arrival; the partial last one is dropped. ``t_s`` ascends.
    None below two full windows."""
    span = float(t_s[-1] - t_s[0])
    num = int(span // window_s)
    judged = window_s >= quantum_s and window_s <= span / 20
    if num < 2:
        return Dispersion(window_s=window_s, idc=None, num_windows=num, judged=False)
    counts = _occupied(t_s, window_s, num).astype(np.float64)
    mean = counts.sum() / num
    variance = (counts**2).sum() / num - mean**2
    return Dispersion(window_s=window_s, idc=rounded(variance / mean), num_windows=num, judged=judged)


def dispersion_curve(t_s: np.ndarray, quantum_s: float = 0.0, first_s: float = 0.1) -> tuple[Dispersion, ...]:
    """``dispersion`` at ``first_s`` and its doublings, up to a twentieth of the span; counts are merged."""
    span, window = float(t_s[-1] - t_s[0]), first_s
    index = ((t_s - t_s[0]) // first_s).astype(np.int64)
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    bins, counts = index[starts], np.diff(np.append(starts, index.size))
    curve = []
    while window <= span / 20:
        num = int(span // window)
        inside = counts[: np.searchsorted(bins, num)].astype(np.float64)
        mean = inside.sum() / num
        idc = rounded(((inside**2).sum() / num - mean**2) / mean)
        curve.append(Dispersion(window_s=window, idc=idc, num_windows=num, judged=window >= quantum_s))
        window, bins = 2 * window, bins // 2
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        bins, counts = bins[starts], np.add.reduceat(counts, starts)
    return tuple(curve)


def peak_rate(t_s: np.ndarray, window_s: float) -> float:
    """The most arrivals in any ``window_s`` that begins at an arrival, per second."""
    ends = np.searchsorted(t_s, t_s + window_s, side="left")
    return float((ends - np.arange(t_s.size)).max() / window_s)


def windowed_gamma(t_s: np.ndarray, quantum_s: float = 0.0, window_s: float = WINDOW_S) -> WindowedGamma:
    """Gamma parameters of the gaps inside each window. ``t_s`` ascends."""
    index = ((t_s - t_s[0]) // window_s).astype(np.int64)
    inside = index[1:] == index[:-1]
    gaps, owner = np.diff(t_s)[inside], index[1:][inside]
    length = int(index[-1]) + 1
    num = np.bincount(index, minlength=length)
    taken = np.flatnonzero(num)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, cv, shape_mle = _moments(gaps, owner, length, quantum_s)
        shape, scale = 1 / cv**2, mean * cv**2
    spans = np.full(length, window_s)
    spans[-1] = max(float(t_s[-1] - t_s[0]) - window_s * (length - 1), 1e-9)
    idc_window = window_s / max(window_s // max(1.0, 10 * quantum_s), 1)
    return WindowedGamma(
        window_s=window_s,
        idc_window_s=idc_window,
        start_s=floats(taken * window_s, 12),
        num=tuple(int(count) for count in num[taken]),
        rate=floats((num / spans)[taken]),
        cv=floats(cv[taken]),
        shape=floats(shape[taken]),
        scale_s=floats(scale[taken]),
        shape_mle=floats(shape_mle[taken]),
        idc=floats(_windowed_idc(t_s, window_s, idc_window, length)[taken]),
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
    gaps: np.ndarray, owner: np.ndarray, length: int, quantum_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, CV and maximum-likelihood Gamma shape of the gaps by owner; NaN where there are too few."""
    num = np.bincount(owner, minlength=length).astype(np.float64)
    num[num < MIN_GAPS] = np.nan
    mean = np.bincount(owner, gaps, minlength=length) / num
    centred = gaps - mean[owner]
    cv = np.sqrt(np.bincount(owner, centred**2, minlength=length) / num) / mean
    if quantum_s > 0:
        return mean, cv, np.full(length, np.nan)
    logs = np.log(gaps, out=np.full(gaps.shape, -np.inf), where=gaps > 0)
    return mean, cv, gamma_shape(mean, np.bincount(owner, logs, minlength=length) / num)


def _occupied(t_s: np.ndarray, window_s: float, num: int) -> np.ndarray:
    """Counts of the windows that hold an arrival, the first ``num`` windows only."""
    index = ((t_s - t_s[0]) // window_s).astype(np.int64)
    index = index[: np.searchsorted(index, num)]
    edges = np.flatnonzero(np.diff(index)) + 1
    return np.diff(np.concatenate(([0], edges, [index.size])))


def _windowed_idc(t_s: np.ndarray, window_s: float, step_s: float, length: int) -> np.ndarray:
    """Index of dispersion in steps within each window; NaN where under 20 full steps or ``MIN_GAPS`` arrivals are."""
    steps = int(window_s // step_s)
    num_full = int((t_s[-1] - t_s[0]) // step_s)
    index = ((t_s - t_s[0]) // step_s).astype(np.int64)
    index = index[: np.searchsorted(index, num_full)]
    edges = np.flatnonzero(np.diff(index, prepend=-1))
    counts = np.diff(np.append(edges, index.size)).astype(np.float64)
    owner = index[edges] // steps if edges.size else np.empty(0, np.int64)
    full = np.full(length, float(steps))
    full[-1] = min(max(num_full - steps * (length - 1), 0), steps)
    full[full < 20] = np.nan
    total = np.bincount(owner, counts, minlength=length)[:length]
    squares = np.bincount(owner, counts**2, minlength=length)[:length]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / full
        return np.where(total > MIN_GAPS, (squares / full - mean**2) / mean, np.nan)


def _survival(gaps: np.ndarray) -> tuple[Floats, ...]:
    ordered = np.sort(gaps[gaps > 0])
    if not ordered.size:
        return ()
    at = np.unique(np.geomspace(ordered[0], ordered[-1], CURVE_POINTS))
    longer = (ordered.size - np.searchsorted(ordered, at, side="right")) / gaps.size
    return tuple(floats(pair) for pair in zip(at, longer, strict=True))
