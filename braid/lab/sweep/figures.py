"""The figure of a sweep: attainment, latencies and goodput against load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from braid.lab.figures.picture import Picture, Plot, draw_plots
from braid.lab.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SOFT,
    new_figure,
    percent,
    seconds_axis,
)
from braid.lab.progress import Progress
from braid.lab.sweep.sweep import Point, Sweep


def draw(found: Sweep, progress: Progress | None = None) -> tuple[Picture, ...]:
    """The figure, if there are points."""
    return draw_plots(PLOTS, found, progress)


def _against_load(found: Sweep) -> Figure | None:
    good = [point for point in found.points if not point.invalid and point.attainment is not None]
    if not good:
        return None
    figure, axes = new_figure(3, 1, 7.6, sharex=True)
    top, middle, bottom = axes[:, 0]
    _attainment(top, found, good)
    _latencies(middle, found, good)
    _goodput(bottom, good)
    for axis in (top, middle, bottom):
        _bracket(axis, found)
        axis.set_xscale("log")
    loads = sorted({point.load for point in found.points})
    bottom.set_xlim(loads[0] / 1.15, loads[-1] * 1.15)
    shown = _spread(loads)
    bottom.set_xticks(shown, [f"{load:.3g}" for load in shown])
    bottom.set_xlabel(
        "load (times the trace's)" if found.options.by == "factor" else "load (programs per second)"
    )
    return figure


def _spread(loads: Sequence[float]) -> list[float]:
    """Those loads whose labels do not touch."""
    room = (np.log(loads[-1]) - np.log(loads[0])) / 14
    shown = [loads[0]]
    for load in loads[1:]:
        if np.log(load) - np.log(shown[-1]) >= room:
            shown.append(load)
    return shown


def _attainment(axis: Any, found: Sweep, good: Sequence[Point]) -> None:
    target = found.options.search.target
    axis.axhline(target, color=INK, linewidth=1, linestyle="--", label=f"target {100 * target:.4g} %")
    for hopeless, marker, name in (
        (False, "o", "replay with 95 %"),
        (True, "v", "out of reach, stopped: at most"),
    ):
        points = [point for point in good if point.hopeless is hopeless]
        if not points:
            continue
        loads, values = [p.load for p in points], [p.attainment for p in points]
        if not hopeless:
            axis.vlines(
                loads, [p.low for p in points], [p.high for p in points], color=BLUE, alpha=0.5, linewidth=2
            )
        axis.plot(loads, values, marker, color=RED if hopeless else BLUE, markersize=5, label=name)
    for load in sorted({point.load for point in found.points if point.invalid}):
        axis.plot(load, 0.02, "x", color=SOFT, markersize=6)
    percent(axis.yaxis)
    axis.set(title="SLO attainment", ylabel="of planned requests", ylim=(0, 1.04))
    axis.legend(loc="lower left", ncols=1)


def _latencies(axis: Any, found: Sweep, good: Sequence[Point]) -> None:
    slo = found.options.slo
    for name, limit, colours in (("ttft", slo.ttft, (BLUE, ORANGE)), ("tpot", slo.tpot, (GREEN, PURPLE))):
        for quantile, colour in zip(("p50", "p99"), colours, strict=True):
            pairs = sorted((p.load, value) for p in good if (value := getattr(p, f"{name}_{quantile}")))
            if pairs:
                axis.plot(
                    *zip(*pairs, strict=True),
                    ".",
                    color=colour,
                    markersize=8,
                    label=f"{name.upper()} {quantile}",
                )
                axis.plot(*_means(pairs), color=colour, linewidth=1, alpha=0.6)
        if limit is not None:
            axis.axhline(limit, color=colours[1], linewidth=1, linestyle="--")
    axis.set_yscale("log")
    seconds_axis(axis.yaxis)
    axis.set(title="Latencies (dashed: limits)", ylabel="seconds")
    axis.legend(loc="upper left", ncols=4, bbox_to_anchor=(0.3, 1.2))


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    loads = sorted({load for load, _ in pairs})
    return loads, [float(np.exp(np.mean([np.log(v) for at, v in pairs if at == load]))) for load in loads]


def _goodput(axis: Any, good: Sequence[Point]) -> None:
    planned = sorted((point.load, point.planned_rate) for point in good)
    axis.plot(*_means([pair for pair in planned if pair[1] > 0]), color=SOFT, linestyle="--", label="planned")
    for hopeless, marker, colour, name in (
        (False, "o", GREEN, "kept the limits"),
        (True, "v", RED, "until it was stopped"),
    ):
        points = [p for p in good if p.hopeless is hopeless and p.goodput is not None]
        if points:
            axis.plot(
                [p.load for p in points],
                [p.goodput for p in points],
                marker,
                color=colour,
                markersize=5,
                label=name,
            )
    axis.set_ylim(bottom=0)
    axis.set(title="Goodput", ylabel="requests / s")
    axis.legend(loc="upper left")


def _bracket(axis: Any, found: Sweep) -> None:
    met, missed = found.answer.met, found.answer.missed
    if met is not None and missed is not None:
        axis.axvspan(met, missed, color=SOFT, alpha=0.18, linewidth=0)


PLOTS: tuple[Plot[Sweep], ...] = (
    Plot(
        "load",
        "Against load",
        "Each mark is one replay; the grey stretch holds the limit. Crosses at the bottom are invalid replays.",
        _against_load,
    ),
)
