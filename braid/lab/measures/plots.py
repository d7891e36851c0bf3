"""Figures of a run, drawn from its ``Measures`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from braid.lab.figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SOFT,
    YELLOW,
    Picture,
    Plot,
    draw_plots,
    duration,
)
from braid.lab.figures.style import array, clock, eng, new_figure, percent
from braid.lab.measures.measure import Measures
from braid.lab.progress import Progress
from braid.lab.replay.outcome import STATUSES

STATUS_COLOURS = {
    "ok": "#bcd9ea", "refused": ORANGE, "error": RED, "timed_out": PURPLE, "cancelled": "#9aa7b3", "cut": YELLOW,
    "unreachable": INK, "rubbish": "#8c5a2b", "unsent": "#e7ebee",
}  # fmt: skip
SHADE = "#8896a3"
MAX_TICKS = 7


def draw_run(found: Measures, progress: Progress | None = None) -> tuple[Picture, ...]:
    """Every figure that there are numbers for, in the order of the page."""
    return draw_plots(PLOTS, found, progress)


class _Time:
    """The axis of time that all figures share: edges of the windows in the unit that suits the run."""

    def __init__(self, found: Measures) -> None:
        rows = found.windows
        self._size, label = clock(rows[-1].end_s)
        self.label = label.replace("trace", "run")
        self.edges = array([*(row.start_s for row in rows), rows[-1].end_s]) / self._size
        self.middles = (self.edges[:-1] + self.edges[1:]) / 2
        self._window = tuple(edge / self._size for edge in found.head.window_s)

    def finish(self, axes: Sequence[Any] | np.ndarray) -> None:
        """Shade what is not measured, and name the lowest axis."""
        end = self.edges[-1]
        low, high = (min(max(edge, 0.0), end) for edge in self._window)
        for axis in axes:
            for left, right in ((0.0, low), (high, end)):
                if right - left > 1e-3 * end:
                    axis.axvspan(left, right, color=SHADE, alpha=0.13, linewidth=0, zorder=0)
            axis.set_xlim(0, end)
        axes[-1].set_xlabel(self.label)


def _steps(axis: Any, time: _Time, values: Sequence[Any], **options: Any) -> None:
    axis.stairs(array(values), time.edges, baseline=None, **options)


def _load(found: Measures) -> Figure | None:
    rows = found.windows
    if not rows:
        return None
    figure, axes = new_figure(4, 1, 8.6, sharex=True)
    time, (top, prompts, outputs, bottom) = _Time(found), axes[:, 0]
    top.stairs([row.load for row in rows], time.edges, fill=True, color=BLUE, alpha=0.22)
    _steps(top, time, [row.load for row in rows], color=BLUE, linewidth=1.2, label="scheduled")
    _steps(top, time, [row.throughput for row in rows], color=GREEN, linewidth=1.8, label="answered")
    top.set(title=f"Requests, mean per {duration(found.window_step_s)}", ylabel="requests / s")
    for axis, what, came in ((prompts, "prompt", "answer began"), (outputs, "output", "came")):
        load = [getattr(row, f"load_{what}") for row in rows]
        axis.stairs(load, time.edges, fill=True, color=BLUE, alpha=0.22)
        _steps(axis, time, load, color=BLUE, linewidth=1.2, label="scheduled")
        _steps(axis, time, [getattr(row, what) for row in rows], color=GREEN, linewidth=1.8, label=came)
        axis.set(title=f"{what.capitalize()} tokens", ylabel="tokens / s")
    bottom.stairs([row.open for row in rows], time.edges, fill=True, color=ORANGE, alpha=0.35)
    _steps(bottom, time, [row.open for row in rows], color=ORANGE, linewidth=1.4)
    bottom.set(title="Open requests, mean", ylabel="requests")
    for axis in (top, prompts, outputs, bottom):
        axis.set_ylim(bottom=0)
        if axis.get_ylim()[1] >= 1000:
            eng(axis.yaxis)
    for axis in (top, prompts, outputs):
        axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.01, 0.98))
    time.finish(axes[:, 0])
    return figure


def _latency(found: Measures) -> Figure | None:
    rows = found.windows
    if not any(row.ttft_p50 is not None for row in rows):
        return None
    figure, axes = new_figure(2, 1, 5.4, sharex=True)
    time = _Time(found)
    for axis, name, limit in ((axes[0, 0], "ttft", found.slo.ttft), (axes[1, 0], "tbt", None)):
        middle, high = (array([getattr(row, f"{name}_{part}") for row in rows]) for part in ("p50", "p99"))
        axis.plot(time.middles, high, "o-", color=RED, markersize=3.5, linewidth=1.3, label="p99")
        axis.plot(time.middles, middle, "o-", color=BLUE, markersize=3.5, linewidth=1.6, label="p50")
        if limit is not None:
            axis.axhline(limit, color=INK, linestyle="--", linewidth=1, label=f"limit {duration(limit)}")
        axis.set(title=name.upper(), ylabel=name.upper())
        axis.legend(loc="lower right", ncols=3, bbox_to_anchor=(1.01, 0.98))
        _seconds(axis.yaxis, [*middle, *high, *_near(limit, max(high[high > 0], default=0.0))])
    axes[0, 0].set_title("TTFT by scheduled time")
    axes[1, 0].set_title("TBT by the time the token came")
    time.finish(axes[:, 0])
    return figure


def _against_load(found: Measures) -> Figure | None:
    rows = [row for row in found.windows if row.measured and row.ttft_p50 is not None]
    if len(rows) < 3:
        return None
    figure, axes = new_figure(1, 2, 3.7)
    for axis, name, x_name, label in (
        (axes[0, 0], "ttft", "load", "scheduled requests / s"),
        (axes[0, 1], "tbt", "output", "output tokens / s"),
    ):
        x = array([getattr(row, x_name) for row in rows])
        shown = []
        for part, colour, marker in (("p99", RED, "^"), ("p50", BLUE, "o")):
            y = array([getattr(row, f"{name}_{part}") for row in rows])
            shown += y.tolist()
            axis.plot(x, y, marker, color=colour, alpha=0.75, markersize=5, label=part, markeredgewidth=0)
        axis.set(title=f"{name.upper()} in each step", xlabel=label)
        axis.set_xlim(left=0)
        axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.02, 0.97))
        _seconds(axis.yaxis, shown)
    return figure


def _distributions(found: Measures) -> Figure | None:
    shown = [
        (name, found.curves[name], limit)
        for name, limit in (
            ("ttft", found.slo.ttft),
            ("tbt", None),
            ("e2e", found.slo.e2e),
            ("jct", found.slo.jct),
        )
        if found.curves.get(name) and (name != "jct" or found.has_programs)
    ]
    if not shown:
        return None
    rows = -(-len(shown) // 2)
    figure, axes = new_figure(rows, 2, 3.5 * rows)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, curve, limit) in zip(axes.flat, shown, strict=False):
        _curve(axis, name.upper(), array([*curve]), limit)
        entry = found.latency[name]
        if entry is not None:
            _marks(axis, ((entry.p50, 0.5), (entry.p90, 0.9), (entry.p99, 0.99)), limit)
    return figure


def _curve(axis: Any, name: str, curve: np.ndarray, limit: float | None) -> None:
    value, share = curve.T
    some = value > 0
    axis.plot(value[some], share[some], color=GREEN, linewidth=2.2)
    axis.fill_between(value[some], share[some], color=GREEN, alpha=0.1, linewidth=0)
    zeros = float(share[~some].max()) if (~some).any() else 0.0
    title = f"{name}  ({zeros:.0%} are 0: tokens of one piece)" if zeros >= 0.01 else name
    if limit is not None:
        axis.axvline(limit, color=INK, linestyle="--", linewidth=1)
    axis.set(title=title, xlabel=name, ylabel="at most that long", ylim=(0, 1.04))
    percent(axis.yaxis)
    if some.any():
        _seconds(axis.xaxis, [*value[some], *_near(limit, value[-1])])


def _marks(axis: Any, points: Sequence[tuple[float, float]], limit: float | None) -> None:
    """Points on the curve, and their values where no curve ever is: low at the right."""
    shown = [(value, share) for value, share in points if value > 0]
    axis.plot([value for value, _ in shown], [share for _, share in shown], "o", color=INK, markersize=4)
    text = "\n".join(f"p{share * 100:g}  {duration(value)}" for value, share in points)
    if limit is not None:
        text += f"\nlimit  {duration(limit)}"
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 3}
    axis.text(0.97, 0.06, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=9, bbox=box)


def _outcomes(found: Measures) -> Figure | None:
    rows = found.windows
    if not rows:
        return None
    figure, axes = new_figure(1, 1, 3.4)
    axis, time = axes[0, 0], _Time(found)
    low = np.zeros(len(rows))
    width = np.diff(time.edges)
    for name in STATUSES:
        count = array([row.outcomes.get(name, 0) for row in rows])
        if count.any():
            axis.bar(
                time.edges[:-1], count, width, low, align="edge", color=STATUS_COLOURS[name], edgecolor="white",
                linewidth=0.5, label=name.replace("_", " "),
            )  # fmt: skip
            low += count
    axis.set(title=f"Requests per {duration(found.window_step_s)} by scheduled time", ylabel="requests")
    axis.legend(loc="lower right", ncols=len(STATUSES), bbox_to_anchor=(1.01, 0.98), columnspacing=1.2)
    time.finish([axis])
    return figure


def _lag(found: Measures) -> Figure | None:
    rows = found.windows
    if not any(row.lag_max is not None and row.lag_max > 0 for row in rows):
        return None
    figure, axes = new_figure(1, 1, 3.2)
    axis, time = axes[0, 0], _Time(found)
    shown: list[float] = [found.head.lag_limit_s]
    for part, colour, marker in (("max", SOFT, "v"), ("p99", RED, "^"), ("p50", BLUE, "o")):
        values = array([getattr(row, f"lag_{part}") for row in rows])
        values[~(values > 0)] = np.nan
        shown += values.tolist()
        axis.plot(time.middles, values, f"{marker}-", color=colour, markersize=3.5, linewidth=1.1, label=part)
    limit = found.head.lag_limit_s
    axis.axhline(limit, color=INK, linestyle="--", linewidth=1, label=f"limit of p99: {duration(limit)}")
    axis.set(title="Send lag: how late the client was", ylabel="send lag")
    axis.legend(loc="lower right", ncols=4, bbox_to_anchor=(1.01, 0.98))
    _seconds(axis.yaxis, shown)
    time.finish([axis])
    return figure


def _seconds(axis: Any, values: Sequence[float] | np.ndarray) -> None:
    """Durations on a logarithmic axis where they span more than a factor of 5 and none is 0, with room at both ends."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not known.size:
        return
    low, high = float(known.min()), float(known.max())
    limits = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim
    if high > 5 * low > 0:
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        limits(low / 1.3, high * 1.3)
        axis.set_major_locator(FixedLocator(_ticks(low / 1.3, high * 1.3)))
    else:
        limits(0, 1.15 * high or 1.0)
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=8.5)


def _near(limit: float | None, high: float) -> list[float]:
    """A limit, if it lies where the values are."""
    return [limit] if limit is not None and limit < 3 * high else []


def _ticks(low: float, high: float) -> list[float]:
    """Round durations within a stretch: the densest kind that gives no more than seven."""
    chosen: list[float] = []
    for digits, longer in (
        ((1, 2, 3, 5, 7), (10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 420, 600, 900, 1200, 1800, 2700, 3600)),
        ((1, 2, 5), (10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 18000, 36000, 86400)),
        ((1, 3), (10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400)),
        ((1,), (10, 60, 600, 3600, 36000)),
    ):
        kind = [digit * 10.0**power for power in range(-6, 1) for digit in digits] + [*longer]
        chosen = [tick for tick in kind if low <= tick <= high]
        if len(chosen) <= MAX_TICKS:
            break
    return chosen


PLOTS: tuple[Plot[Measures], ...] = (
    Plot(
        "load",
        "Load and throughput",
        "What was asked of the server, and what it gave. Shaded: not measured (warm-up, drain).",
        _load,
    ),
    Plot(
        "latency",
        "Latency through time",
        "Percentiles of each step, counted from the scheduled time.",
        _latency,
    ),
    Plot(
        "latency_load",
        "Latency against load",
        "A point for each measured step: p50 and p99 over the load of that step.",
        _against_load,
    ),
    Plot(
        "distributions",
        "Distributions",
        "Share of the measured answers (JCT: programs) that took at most so long.",
        _distributions,
    ),
    Plot(
        "outcomes",
        "Outcomes",
        "What became of the requests scheduled in each step; unsent ones lie where the plan had them.",
        _outcomes,
    ),
    Plot(
        "lag",
        "Send lag",
        "Actual less scheduled time of each send, absolute; a lag of zero is not drawn.",
        _lag,
    ),
)
"""All figures, in the order of the page."""
