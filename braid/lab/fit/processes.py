"""How the rate of arrivals moves, as data, and paths drawn from it.

A path is an endless stream of pieces ``(durations, rates)``: seconds, and arrivals per second while they last. Arrivals
are a renewal process of mean 1 in operational time (the integral of the rate), so each model here times each gap law of
``laws`` is one generator, and what makes counts vary (the path) stands apart from what makes gaps uneven (the law).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import signal

from braid.lab.distance import Floats
from braid.lab.fit.laws import UnitLaw, draw_unit

Piece = tuple[Floats, Floats]


class Constant(msgspec.Struct, frozen=True, kw_only=True, tag="constant"):
    rate: float


class Windowed(msgspec.Struct, frozen=True, kw_only=True, tag="windowed"):
    """One rate per window: ``log rate = log_mean + e``, ``e`` autoregressive with lag-1 ``phi`` and spread ``sd``.

    ``cycle`` multiplies: one factor per hour of the day (24), of the week (168), or none (empty).
    """

    window_s: float
    log_mean: float
    sd: float
    phi: float
    cycle: tuple[float, ...] = ()


class OnOff(msgspec.Struct, frozen=True, kw_only=True, tag="onoff"):
    """Busy phases and silences, both log-normal; a busy phase has one rate.

    ``log rate = rate_log + rate_slope * log(duration) + N(0, rate_sd)``: long phases may be slower or faster.
    """

    threshold_s: float
    on_log: float
    on_sd: float
    off_log: float
    off_sd: float
    rate_log: float
    rate_slope: float
    rate_sd: float


class Mmpp(msgspec.Struct, frozen=True, kw_only=True, tag="mmpp"):
    """Markov-modulated Poisson: ``rates`` (1/s) of the states, ``switch[i][j]`` (1/s) from state i to j."""

    rates: tuple[float, ...]
    switch: tuple[tuple[float, ...], ...]


class Cox(msgspec.Struct, frozen=True, kw_only=True, tag="cox"):
    """Log-Gaussian rate: ``rate * exp(z - var/2)``, z a sum of Ornstein-Uhlenbeck parts of these time scales (s)."""

    rate: float
    taus_s: tuple[float, ...]
    variances: tuple[float, ...]


class Hawkes(msgspec.Struct, frozen=True, kw_only=True, tag="hawkes"):
    """Self-exciting: ``base_rate`` (1/s), and each arrival causes ``branching`` (< 1) more, ``1 / decay`` s later on
    average. Its rate follows its own arrivals, so it takes no gap law."""

    base_rate: float
    branching: float
    decay: float

    @property
    def memory_s(self) -> float:
        """How long what an arrival sets off goes on, about."""
        return 1 / (self.decay * (1 - self.branching))


RateProcess = Constant | Windowed | OnOff | Mmpp | Cox
Process = RateProcess | Hawkes


def path(process: RateProcess, rng: np.random.Generator, chunk_s: float) -> Iterator[Piece]:
    """Pieces of about ``chunk_s`` seconds each, without end, in a stationary state from the start."""
    match process:
        case Constant():
            return _constant(process, chunk_s)
        case Windowed():
            return _windowed(process, rng, chunk_s)
        case OnOff():
            return _onoff(process, rng, chunk_s)
        case Mmpp():
            return _mmpp(process, rng, chunk_s)
        case Cox():
            return _cox(process, rng, chunk_s)


def _constant(process: Constant, chunk_s: float) -> Iterator[Piece]:
    while True:
        yield np.array([chunk_s]), np.array([process.rate])


def _autoregressive(
    phi: float, sd: float, start: float, num: int, rng: np.random.Generator
) -> tuple[Floats, float]:
    """``num`` further values of a stationary AR(1) with spread ``sd`` after ``start``, and the last of them."""
    noise = rng.standard_normal(num) * (sd * np.sqrt(max(1 - phi * phi, 0.0)))
    values, _ = signal.lfilter([1.0], [1.0, -phi], noise, zi=[phi * start])
    return values, float(values[-1])


def _windowed(process: Windowed, rng: np.random.Generator, chunk_s: float) -> Iterator[Piece]:
    num = max(1, int(chunk_s // process.window_s))
    last, t = process.sd * float(rng.standard_normal()), 0.0
    cycle = np.array(process.cycle or (1.0,))
    while True:
        values, last = _autoregressive(process.phi, process.sd, last, num, rng)
        middle = t + (np.arange(num) + 0.5) * process.window_s
        factor = cycle[(middle // 3600).astype(np.int64) % cycle.size]
        t += num * process.window_s
        yield np.full(num, process.window_s), factor * np.exp(process.log_mean + values)


def _onoff(process: OnOff, rng: np.random.Generator, chunk_s: float) -> Iterator[Piece]:
    typical = np.exp(process.on_log) + np.exp(process.off_log)
    num = int(np.clip(chunk_s / typical, 16, 1_000_000))
    while True:
        log_on = process.on_log + process.on_sd * rng.standard_normal(num)
        log_rate = process.rate_log + process.rate_slope * log_on + process.rate_sd * rng.standard_normal(num)
        off = np.exp(process.off_log + process.off_sd * rng.standard_normal(num))
        yield (
            np.stack([np.exp(log_on), off], axis=1).ravel(),
            np.stack([np.exp(log_rate), np.zeros(num)], axis=1).ravel(),
        )


def _mmpp(process: Mmpp, rng: np.random.Generator, chunk_s: float) -> Iterator[Piece]:
    rates, switch = np.array(process.rates), np.array(process.switch)
    np.fill_diagonal(switch, 0.0)
    leave = switch.sum(axis=1)
    onward = np.cumsum(switch / leave[:, None], axis=1).tolist()
    state = int(rng.choice(rates.size, p=stationary(switch)))
    num = int(np.clip(chunk_s * leave.mean(), 16, 1_000_000))
    while True:
        states = []
        for u in rng.random(num).tolist():
            states.append(state)
            state = next((j for j, edge in enumerate(onward[state]) if u < edge), rates.size - 1)
        index = np.array(states)
        yield rng.standard_exponential(num) / leave[index], rates[index]


def stationary(switch: NDArray[np.float64]) -> Floats:
    """Long-run shares of a Markov chain's states from its rates of change (diagonal ignored)."""
    generator = switch - np.diag(np.diag(switch))
    generator = generator - np.diag(generator.sum(axis=1))
    size = len(generator)
    system = np.vstack([generator.T, np.ones(size)])
    shares = np.linalg.lstsq(system, np.r_[np.zeros(size), 1.0], rcond=None)[0]
    shares = np.maximum(shares, 0)
    return np.asarray(shares / shares.sum())


def _cox(process: Cox, rng: np.random.Generator, chunk_s: float) -> Iterator[Piece]:
    used = [(tau, var) for tau, var in zip(process.taus_s, process.variances, strict=True) if var > 1e-6]
    if not used:
        yield from _constant(Constant(rate=process.rate), chunk_s)
    cell = min(tau for tau, _ in used) / 2
    num = int(np.clip(chunk_s / cell, 16, 1_000_000))
    total = sum(var for _, var in used)
    last = [np.sqrt(var) * float(rng.standard_normal()) for _, var in used]
    while True:
        z = np.full(num, np.log(process.rate) - total / 2)
        for i, (tau, var) in enumerate(used):
            values, last[i] = _autoregressive(
                float(np.exp(-cell / tau)), float(np.sqrt(var)), last[i], num, rng
            )
            z += values
        yield np.full(num, cell), np.exp(z)


def arrivals(process: Process, law: UnitLaw, rng: np.random.Generator, chunk_s: float) -> Iterator[Floats]:
    """Arrival times (s), rising over all chunks, without end; a chunk may be empty."""
    if isinstance(process, Hawkes):
        yield from _excited(process, rng, chunk_s)
        return
    clock, now, event = 0.0, 0.0, float(rng.random() * draw_unit(law, 1, rng)[0])
    for durations, rates in path(process, rng, chunk_s):
        seconds = np.concatenate([[clock], clock + np.cumsum(durations)])
        operational = np.concatenate([[now], now + np.cumsum(durations * rates)])
        clock, now = float(seconds[-1]), float(operational[-1])
        parts = []
        while event < now:
            num = int((now - event) * 1.02 + 4 * np.sqrt(now - event) + 16)
            steps = event + np.concatenate([[0.0], np.cumsum(draw_unit(law, num, rng))])
            stop = int(np.searchsorted(steps, now))
            parts.append(steps[:stop])
            event = float(steps[stop]) if stop < steps.size else float(steps[-1])
            if stop == steps.size:  # the last drawn step opens the next round
                parts[-1] = parts[-1][:-1]
        yield np.interp(np.concatenate(parts), operational, seconds) if parts else np.empty(0)


def _excited(process: Hawkes, rng: np.random.Generator, chunk_s: float) -> Iterator[Floats]:
    """Arrivals that come by themselves, and all that each of them causes; from long enough before 0 on to be even."""
    chunk_s = max(chunk_s, process.memory_s)
    clock, held = -20 * process.memory_s, np.empty(0)
    while True:
        end = 0.0 if clock < 0 else clock + chunk_s
        parents = rng.uniform(clock, end, rng.poisson(process.base_rate * (end - clock)))
        parts = [held, parents]
        while parents.size:
            caused = np.repeat(parents, rng.poisson(process.branching, parents.size))
            parents = caused + rng.standard_exponential(caused.size) / process.decay
            parts.append(parents)
        times = np.sort(np.concatenate(parts))
        clock, stop = end, int(np.searchsorted(times, end))
        held = times[stop:]
        if end > 0:
            yield times[:stop]


def arrivals_until(process: Process, law: UnitLaw, rng: np.random.Generator, span_s: float) -> Floats:
    """All arrivals before ``span_s``."""
    parts = []
    for chunk in arrivals(process, law, rng, span_s):
        parts.append(chunk)
        if chunk.size and chunk[-1] >= span_s:
            break
    times = np.concatenate(parts)
    return times[times < span_s]


def mean_rate(process: Process, seed: int = 0) -> float:
    """Long-run arrivals per second; exact where there is a formula, else from a long path."""
    match process:
        case Constant() | Cox():
            return process.rate
        case Hawkes():
            return process.base_rate / (1 - process.branching)
        case Mmpp():
            return float(stationary(np.array(process.switch)) @ np.array(process.rates))
        case _:
            rng = np.random.default_rng(seed)
            pieces = path(process, rng, 1e7)
            durations, rates = next(pieces)
            return float((durations * rates).sum() / durations.sum())
