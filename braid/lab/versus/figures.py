"""Figures of a comparison: what differs with its intervals, both distributions, and pairs of requests through time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from braid.lab.distance import Floats
from braid.lab.figures.picture import Picture, Plot, draw_plots
from braid.lab.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RED,
    SOFT,
    grid_of,
    new_figure,
    percent,
    seconds_axis,
)
from braid.lab.measures.measure import CURVE
from braid.lab.progress import Progress
from braid.lab.versus.comparison import EQUAL, LATENCIES, Comparison, Row
from braid.lab.versus.sides import Points

COLOURS = {"better": GREEN, "worse": RED, "same": BLUE}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50)
MAX_POINTS = 4000
SMOOTH = 31
"""Requests in a running median."""


def draw(comparison: Comparison, progress: Progress | None = None) -> tuple[Picture, ...]:
    """Those figures that the comparison has numbers for."""
    return draw_plots(PLOTS, comparison, progress)


def _forest(found: Comparison) -> Figure | None:
    rows = [row for row in found.rows if row.metric.scale == "ratio" and row.ratio is not None]
    if not rows:
        return None
    figure, axes = new_figure(1, 1, 1.1 + 0.26 * len(rows))
    axis = axes[0, 0]
    figure.subplots_adjust(left=0.2, right=0.82)
    axis.axvspan(1 - EQUAL, 1 + EQUAL, color=SOFT, alpha=0.15, linewidth=0)
    axis.axvline(1, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        _interval(axis, place, row)
    _ratio_axis(axis, "x", *_reach(rows))
    axis.set_yticks(range(len(rows)), [row.title for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set(title="B / A with 95 % intervals", xlabel="B / A")
    return figure


def _interval(axis: Any, place: int, row: Row) -> None:
    assert row.ratio is not None
    colour = COLOURS.get(row.reading, SOFT)
    axis.hlines(place, row.ratio.low, row.ratio.high, color=colour, linewidth=2.4, alpha=0.75)
    axis.plot(row.ratio.value, place, "o", color=colour, markersize=5)
    text = f"{row.ratio.value:.2f}x  {row.reading}"
    axis.annotate(
        text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=colour,
        annotation_clip=False,
    )  # fmt: skip


def _ratio_axis(axis: Any, which: str, low: float, high: float) -> None:
    """A logarithmic axis of ratios, labelled at round ones that leave each other room."""
    shown: list[float] = []
    for tick in sorted(TICKS, key=lambda tick: abs(np.log(tick))):
        room = np.log(high / low) / 9
        if low <= tick <= high and all(abs(np.log(tick / other)) >= room for other in shown):
            shown.append(tick)
    labels = [f"{tick:g}x" for tick in shown]
    if which == "x":
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.set_xticks(shown, labels)
    else:
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        axis.set_yticks(shown, labels)


def _most(ratios: Floats) -> tuple[float, float]:
    """Limits that hold 1 and all but the outermost hundredth."""
    low, high = np.quantile(ratios, [0.005, 0.995])
    return min(float(low) / 1.1, 0.9), max(float(high) * 1.1, 1.12)


def _reach(rows: list[Row]) -> tuple[float, float]:
    """Limits that hold the values and, if they are not absurdly wide, the intervals."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    low = max(min(found.low for found in ratios), min(found.value for found in ratios) / 4, 0.02)
    high = min(max(found.high for found in ratios), max(found.value for found in ratios) * 4, 50.0)
    return min(low / 1.05, 0.93), max(high * 1.05, 1.07)


def _distributions(found: Comparison) -> Figure | None:
    metrics = [metric for metric in LATENCIES if metric.name in found.curves]
    if len(metrics) > 1:
        metrics = [metric for metric in metrics if metric.name != "tpot" or len(metrics) % 2 == 0]
    if not metrics:
        return None
    figure, axes = grid_of(metrics, 2.9)
    for axis, metric in zip(axes, metrics, strict=False):
        a, b = found.curves[metric.name]
        floor = _floor(a, b)
        for curve, name, colour, dash in ((a, "A", BLUE, "-"), (b, "B", ORANGE, "--")):
            axis.plot(np.maximum(curve, floor), CURVE, color=colour, linestyle=dash, label=name)
        axis.set_xscale("log")
        seconds_axis(axis.xaxis)
        percent(axis.yaxis)
        axis.set_ylim(0, 1.02)
        axis.set(title=metric.title, ylabel="share at most that")
        axis.legend(loc="lower right")
    return figure


def _floor(a: Floats, b: Floats) -> float:
    """Zeros (TBT inside a piece) lie at the left edge of a logarithmic axis."""
    positive = [curve[curve > 0].min() for curve in (a, b) if (curve > 0).any()]
    return float(min(positive)) if positive else 1e-6


def _pairs(found: Comparison) -> Figure | None:
    if found.points is None:
        return None
    ratios = {"TTFT": _ratio(*found.points.ttft), "E2E": _ratio(*found.points.e2e)}
    if any(ratio.size < 2 for ratio in ratios.values()):
        return None
    figure, axes = new_figure(1, 2, 3.6)
    left, right = axes[0]
    _through_time(left, found.points)
    for (name, ratio), colour, dash in zip(ratios.items(), (BLUE, GREEN), ("-", "--"), strict=True):
        shares = np.arange(1, ratio.size + 1) / ratio.size
        right.plot(np.sort(ratio), shares, color=colour, linestyle=dash, label=name)
    right.axvline(1, color=INK, linewidth=1)
    _ratio_axis(right, "x", *_most(np.concatenate(list(ratios.values()))))
    percent(right.yaxis)
    right.set(title="Requests by B / A", xlabel="B / A", ylabel="share at most that")
    right.legend(loc="upper left")
    return figure


def _through_time(axis: Any, points: Points) -> None:
    a, b = points.ttft
    order = np.argsort(points.at)
    usable = order[(a[order] > 0) & (b[order] > 0)]
    ratio, at = b[usable] / a[usable], points.at[usable]
    step = max(1, at.size // MAX_POINTS)
    axis.plot(at[::step], ratio[::step], ".", color=BLUE, markersize=3, alpha=0.35)
    if at.size >= 2 * SMOOTH:
        views = np.lib.stride_tricks.sliding_window_view(ratio, SMOOTH)
        middle = at[SMOOTH // 2 : -(SMOOTH // 2)]
        axis.plot(middle, np.median(views, axis=1), color=ORANGE, linewidth=1.4)
    axis.axhline(1, color=INK, linewidth=1)
    _ratio_axis(axis, "y", *_most(ratio))
    axis.set(title="TTFT, request by request", xlabel="time since the run's start (s)", ylabel="B / A")


def _ratio(a: Floats, b: Floats) -> Floats:
    good = (a > 0) & (b > 0)
    return b[good] / a[good]


PLOTS: tuple[Plot[Comparison], ...] = (
    Plot(
        "differences",
        "What differs",
        "Ratios with 95 % intervals. Green and red are clear: the interval, widened for the number of comparisons, "
        f"leaves out 1. Blue is the same within {EQUAL:.0%} (the grey band), grey is unclear.",
        _forest,
    ),
    Plot(
        "distributions",
        "Both distributions",
        "Share of values up to a latency, of the requests answered in both runs (of each run's own, where they are not "
        "paired). Further left is faster.",
        _distributions,
    ),
    Plot(
        "pairs",
        "Request by request",
        "Each request of the first pair of runs against itself: below 1, or left of it, B was faster. The line is a "
        f"running median of {SMOOTH} requests.",
        _pairs,
    ),
)
