"""Load through time: how many requests and tokens per hour and day, and how much of it repeats daily and weekly.

Day 0 begins at the trace's zero; weeks are seven such days, since most traces do not say which day of the week it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from braid.lab.arrays import Floats, box, floats, rounded, sums_between

HOUR_S = 3600
DAY_H = 24
WEEK_H = 7 * DAY_H
MOST_POINTS = 400
STEPS_S = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 21600, 43200, 86400)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSeries:
    """Load in steps of ``step_s``: requests and tokens per second. Shapes ``(steps,)``; the last step may be partial
    and counts its own length."""

    step_s: float
    requests: Floats
    in_tok: Floats
    out_tok: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Calendar:
    """One panel's load by the clock.

    Args:
        per_day: requests by day, whole and partial days. Shape ``(days,)``.
        hour_requests, hour_in_tok, hour_out_tok: per hour of the day the box (p5, p25, p50, p75, p95) over the days of
            requests and tokens in that hour. Shape ``(24, 5)``.
        weekday_requests: the same per day of the week, over whole days. Shape ``(7, 5)``.
        daily_share, weekly_share: how much of the variance of requests per hour the hour of the day, and the hour of
            the week, explain (eta squared less what chance explains); None below two days, two weeks.
        daily_echo, weekly_echo: autocorrelation of requests per hour at 24 h and at 168 h.
    """

    per_day: tuple[int, ...]
    hour_requests: tuple[Floats, ...]
    hour_in_tok: tuple[Floats, ...]
    hour_out_tok: tuple[Floats, ...]
    weekday_requests: tuple[Floats, ...]
    daily_share: float | None
    weekly_share: float | None
    daily_echo: float | None
    weekly_echo: float | None


def load_series(t_s: np.ndarray, in_tok: np.ndarray, out_tok: np.ndarray) -> LoadSeries:
    """Load through time, in the finest of ``STEPS_S`` that needs at most ``MOST_POINTS`` points. ``t_s`` ascends."""
    begin, span = t_s[0], max(t_s[-1] - t_s[0], 1e-9)
    step = next((step for step in STEPS_S if span / step <= MOST_POINTS), STEPS_S[-1])
    num = int(span // step) + 1
    bounds = _bounds(t_s, begin + step * np.arange(num))
    lengths = np.full(num, float(step))
    lengths[-1] = max(span - step * (num - 1), step / 2)
    sums = [np.diff(bounds), sums_between(in_tok, bounds), sums_between(out_tok, bounds)]
    requests, inputs, outputs = (floats(total / lengths, 5) for total in sums)
    return LoadSeries(step_s=step, requests=requests, in_tok=inputs, out_tok=outputs)


def calendar(
    t_s: np.ndarray, in_tok: np.ndarray, out_tok: np.ndarray, begin_s: float, last_s: float
) -> Calendar:
    """Load by hour of the day and day of the week, from ``begin_s``, where day 0 begins, to ``last_s``, where the whole
    trace ends. ``t_s`` ascends."""
    hours = int((last_s - begin_s) // HOUR_S) + 1
    bounds = _bounds(t_s, begin_s + HOUR_S * np.arange(hours))
    requests = np.diff(bounds)
    inputs, outputs = sums_between(in_tok, bounds), sums_between(out_tok, bounds)
    whole = max(hours - 1, 1)  # the last hour is partial
    days = -(-hours // DAY_H)
    per_day = np.pad(requests, (0, days * DAY_H - hours)).reshape(days, DAY_H).sum(1)
    whole_days = per_day[: max(whole // DAY_H, 1)]
    return Calendar(
        per_day=tuple(int(count) for count in per_day),
        hour_requests=_boxes(requests[:whole], DAY_H),
        hour_in_tok=_boxes(inputs[:whole], DAY_H),
        hour_out_tok=_boxes(outputs[:whole], DAY_H),
        weekday_requests=_boxes(whole_days, 7),
        daily_share=explained(requests[:whole], DAY_H),
        weekly_share=explained(requests[:whole], WEEK_H),
        daily_echo=echo(requests[:whole], DAY_H),
        weekly_echo=echo(requests[:whole], WEEK_H),
    )


def explained(values: np.ndarray, period: int) -> float | None:
    """Share of the variance that the phase within ``period`` explains (epsilon squared: eta squared corrected for the
    number of groups); None below two periods or without variance."""
    if values.size < 2 * period or values.std() == 0:
        return None
    phase = np.arange(values.size) % period
    sizes = np.bincount(phase)
    means = np.bincount(phase, values) / sizes
    within = float(((values - means[phase]) ** 2).sum()) / (values.size - period)
    total = float(((values - values.mean()) ** 2).sum()) / (values.size - 1)
    return rounded(max(0.0, 1 - within / total), 4)


def echo(values: np.ndarray, lag: int) -> float | None:
    """Correlation of the series with itself ``lag`` steps earlier; None below two lags or without variance."""
    if values.size < 2 * lag:
        return None
    early, late = values[:-lag], values[lag:]
    if early.std() == 0 or late.std() == 0:
        return None
    return rounded(float(np.corrcoef(early, late)[0, 1]), 4)


def _bounds(t_s: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Rows before each start, and all rows."""
    return np.append(np.searchsorted(t_s, starts), t_s.size)


def _boxes(values: np.ndarray, period: int) -> tuple[Floats, ...]:
    return tuple(box(values[phase::period]) for phase in range(period))
