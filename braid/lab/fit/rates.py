"""Fitting how the rate moves: windows, busy phases and silences, log-Gaussian rates."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from scipy import optimize

from braid.lab.distance import Floats
from braid.lab.fit.laws import POISSON, fit_law
from braid.lab.fit.observed import Observed
from braid.lab.fit.processes import Cox, OnOff, Windowed, arrivals_until

WINDOW_S = 1200.0
MIN_GAPS = 50
COX_ARRIVALS = 300_000


class WindowRow(msgspec.Struct, frozen=True, kw_only=True):
    """One window of the table: its arrivals, its rate, and its own Gamma shape (None under 50 gaps: pooled)."""

    start_s: float
    num: int
    rate: float
    shape: float | None


class FittedRate(NamedTuple):
    process: Windowed | OnOff | Cox
    gaps: Floats
    """Gaps of the arrivals in units of the local mean gap: what a gap law is fitted to."""


def window_table(data: Observed, window_s: float = WINDOW_S) -> tuple[WindowRow, ...]:
    """Rate and Gamma shape per window, the series whose drift BurstGPT shows."""
    rows = []
    for start, stop in data.spans:
        for low in np.arange(start, stop, window_s):
            high = min(low + window_s, stop)
            if high - low < window_s / 4:
                continue
            first, last = np.searchsorted(data.times, [low, high])
            gaps = np.diff(data.times[first:last])
            fits = gaps.size >= MIN_GAPS and np.count_nonzero(gaps) > 1
            shape = fit_law(gaps, "gamma", data.quantum_s).shape if fits else None
            num = int(last - first)
            rows.append(WindowRow(start_s=float(low), num=num, rate=num / (high - low), shape=shape))
    return tuple(rows)


def _cycle(data: Observed) -> tuple[float, ...]:
    """Mean rate per hour of the day (from two days on) or of the week (from two weeks on), relative to the mean."""
    hours = 168 if data.covered_s >= 14 * 86_400 else 24 if data.covered_s >= 2 * 86_400 else 0
    if not hours:
        return ()
    seen, time = np.zeros(hours), np.zeros(hours)
    for start, stop in data.spans:
        edges = np.r_[start, np.arange(start // 3600 + 1, stop // 3600 + 1) * 3600.0, stop]
        edges = np.unique(edges[(edges >= start) & (edges <= stop)])
        slot = ((edges[:-1] + edges[1:]) / 2 // 3600).astype(np.int64) % hours
        np.add.at(seen, slot, np.histogram(data.times, edges)[0])
        np.add.at(time, slot, np.diff(edges))
    rates = (seen + 0.5) / np.maximum(time, 1.0)
    return tuple(float(r) for r in rates / np.average(rates, weights=np.maximum(time, 1.0)))


def fit_windowed(data: Observed, window_s: float) -> FittedRate:
    """Window rates as an autoregressive log-residual around a daily or weekly cycle."""
    cycle = _cycle(data)
    counts, middles = _windows(data, window_s)
    factor = np.array(cycle or (1.0,))[(middles // 3600).astype(np.int64) % max(len(cycle), 1)]
    expected = np.maximum(factor * window_s, 1e-9)
    log_rate = np.log((counts + 0.5) / expected)
    # Counting noise widens the spread of estimated rates by about 1/n; it is not the rate's own.
    noise = float(np.mean(1 / (counts + 0.5)))
    variance = max(float(log_rate.var()) - noise, 1e-6)
    residual = log_rate - log_rate.mean()
    lag = float(np.mean(residual[1:] * residual[:-1])) / variance if counts.size > 3 else 0.0
    process = Windowed(
        window_s=window_s,
        log_mean=float(np.log(data.rate) - variance / 2),
        sd=float(np.sqrt(variance)),
        phi=float(np.clip(lag, 0.0, 0.98)),
        cycle=cycle,
    )
    return FittedRate(process, _local_gaps(data, window_s))


def _windows(data: Observed, window_s: float) -> tuple[Floats, Floats]:
    counts = data.counts(window_s)
    middles = [
        start + (np.arange(int((stop - start) / window_s + 1e-9)) + 0.5) * window_s
        for start, stop in data.spans
    ]
    return counts, np.concatenate(middles)


def _local_gaps(data: Observed, window_s: float) -> Floats:
    """Gaps over their window's mean gap, windows with under 50 gaps joined to the whole."""
    gaps, ends = np.diff(data.times), data.times[1:]
    owner = np.searchsorted([start for start, _ in data.spans], data.times, "right")
    inside = np.diff(owner) == 0
    gaps, key = gaps[inside], (owner[1:] * 1_000_003 + ends // window_s)[inside]
    _, group = np.unique(key, return_inverse=True)
    num = np.bincount(group)
    means = np.bincount(group, gaps) / num
    means = np.where((num >= MIN_GAPS) & (means > 0), means, gaps.mean())
    return np.asarray(gaps / means[group])


def fit_onoff(data: Observed, threshold_s: float, *, free_rate: bool = True) -> FittedRate | None:
    """Silences are gaps over ``threshold_s``; None where there are fewer than 8 silences or busy phases.

    Every busy phase has a rate of its own, or (not ``free_rate``) all have one and only the gap law tells them apart.
    """
    gaps = np.diff(data.times)
    owner = np.searchsorted([start for start, _ in data.spans], data.times, "right")
    crosses = np.diff(owner) != 0
    silent = (gaps > threshold_s) & ~crosses
    cut = np.flatnonzero((gaps > threshold_s) | crosses) + 1
    first, last = np.r_[0, cut], np.r_[cut, data.times.size]
    num = (last - first).astype(float)
    inner = gaps[(gaps <= threshold_s) & ~crosses]
    if silent.sum() < 8 or num.size < 8 or inner.size < 8:
        return None
    duration = data.times[last - 1] - data.times[first] + float(inner.mean())
    log_on, log_rate = np.log(duration), np.log(num / duration)
    slope = float(np.cov(log_on, log_rate)[0, 1] / max(log_on.var(ddof=1), 1e-9)) if free_rate else 0.0
    residual_sd = float((log_rate - slope * log_on).std()) if free_rate else 0.0
    on_log, on_sd = _matched(duration)
    _, off_sd = _matched(gaps[silent])
    # Silences that a span's edge cuts are the long ones: their mean follows from the rate, not from those seen whole.
    off_mean = max(float(num.mean()) / data.rate - float(duration.mean()), threshold_s)
    off_log = float(np.log(off_mean)) - off_sd * off_sd / 2
    # E[duration * rate] of the model is the mean count of a busy phase as seen.
    mean_log = (1 + slope) * on_log + ((1 + slope) * on_sd) ** 2 / 2 + residual_sd**2 / 2
    process = OnOff(
        threshold_s=threshold_s,
        on_log=on_log,
        on_sd=on_sd,
        off_log=off_log,
        off_sd=off_sd,
        rate_log=float(np.log(num.mean())) - mean_log,
        rate_slope=slope,
        rate_sd=residual_sd,
    )
    if not free_rate:
        return FittedRate(process, inner / inner.mean())
    phase = np.repeat(np.arange(num.size), num.astype(np.int64))
    same = np.diff(phase) == 0
    return FittedRate(process, (gaps * (num / duration)[phase[1:]])[same])


def _matched(values: Floats) -> tuple[float, float]:
    """Log-normal (mu, sigma) with the logarithms' spread and the values' own mean, so that rates come out right."""
    sd = float(np.log(values).std())
    return float(np.log(values.mean())) - sd * sd / 2, sd


def fit_cox(data: Observed, *, corrected: bool = True) -> FittedRate | None:
    """Variances of log-rate parts at fixed time scales, so that IDC at every window length comes out as seen.

    What is seen of a short trace lies below the process's own index, and more often far below than far above it. So the
    fit is corrected by its own simulations over the same spans (indirect inference, Gourieroux et al. 1993): what is
    wanted is moved 0.7 of the way, on a log scale, that takes their median index to the one seen (they are few).
    Without ``corrected`` the fit stays as it was first. None under 20 arrivals.
    """
    if data.times.size < 20:
        return None
    span, shortest = data.covered_s, max(0.25 / data.rate, data.quantum_s, 1e-3)
    windows = np.geomspace(2 * shortest, span / 12, 14)
    seen = np.array([data.idc(float(w)) for w in windows])
    usable = np.isfinite(seen) & (seen > 0)
    windows, seen = windows[usable], seen[usable]
    if windows.size < 4:
        return None
    taus = np.geomspace(shortest, span / 6, 8)
    process = _cox_of(data, windows, seen, taus)
    if not corrected:
        return FittedRate(process, np.empty(0))
    wanted = seen * np.clip(seen / _median_idc(process, data, windows), 0.2, 5) ** 0.7
    return FittedRate(_cox_of(data, windows, wanted, taus), np.empty(0))


def _cox_of(data: Observed, windows: Floats, wanted: Floats, taus: Floats) -> Cox:
    """The process whose index over windows of a trace of this length is as wanted.

    The mean index over full windows of a finite trace falls short by the variance of the trace's own mean, about
    ``IDC(T) w / T``; the fit takes that into account.
    """
    span, grid = data.covered_s, (np.arange(64) + 0.5) / 64

    def curve(variances: Floats, at: Floats) -> Floats:
        lags = at[:, None] * grid**2  # denser near zero, where the short parts live
        weights = (1 - grid**2) * 2 * grid / 64
        covariance = np.expm1(np.minimum((np.exp(-lags[:, :, None] / taus) * variances).sum(axis=2), 50))
        return np.asarray(1 + 2 * data.rate * at * (covariance * weights).sum(axis=1))

    def loss(roots: Floats) -> Floats:
        expected = curve(roots**2, np.r_[windows, span])
        model = np.maximum(expected[:-1] - expected[-1] * windows / span, 1e-3)
        return np.asarray(np.r_[np.log(model / wanted), 0.02 * roots])

    found = optimize.least_squares(loss, np.full(taus.size, 0.2), max_nfev=60)
    variances = tuple(float(v) for v in found.x**2)
    return Cox(rate=data.rate, taus_s=tuple(map(float, taus)), variances=variances)


def _median_idc(process: Cox, data: Observed, windows: Floats) -> Floats:
    """Of simulations over the same spans and on the same clock; fewer of long traces."""
    origin, length = data.spans[0][0], data.spans[-1][1] - data.spans[0][0]
    num = int(np.clip(COX_ARRIVALS // max(data.times.size, 1), 4, 24))
    rows = []
    for child in np.random.SeedSequence(0).spawn(num):
        times = origin + arrivals_until(process, POISSON, np.random.default_rng(child), length)
        if data.quantum_s:
            times = np.floor(times / data.quantum_s) * data.quantum_s
        run = Observed(times, ((origin, origin + length),), data.quantum_s).within(data.spans)
        rows.append([run.idc(float(w)) for w in windows])
    return np.asarray(np.maximum(np.nanmedian(np.array(rows), axis=0), 1e-3))
