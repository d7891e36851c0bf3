"""Figures of load: through time, by week, by the hour of the day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from braid.lab.describe.description import Description
from braid.lab.figures.parts import parts_of
from braid.lab.figures.picture import Plot
from braid.lab.figures.style import (
    BLUE,
    GREEN,
    HEAT,
    INK,
    ORANGE,
    SOFT,
    array,
    clock,
    duration,
    eng,
    grid_of,
    new_figure,
    room_above,
    titles,
)

LINEAR_TOKENS = 1000
"""Below this, axes of tokens per hour are linear."""


def _load(description: Description) -> Figure | None:
    series = description.load
    if series is None:
        return None
    figure, axes = new_figure(2, 1, 5.0, sharex=True)
    size, label = clock(description.span_s)
    times = np.arange(len(series.requests)) * series.step_s / size
    top, bottom = axes[:, 0]
    top.fill_between(times, array(series.requests), step="post", color=BLUE, alpha=0.25, linewidth=0)
    top.step(times, array(series.requests), where="post", color=BLUE, linewidth=1.1)
    top.set_ylabel("requests / s")
    top.set_title(f"Requests, mean per {duration(series.step_s)}")
    for values, name, colour, dash in (
        (series.in_tok, "prompt", ORANGE, "-"),
        (series.out_tok, "output", GREEN, "-"),
    ):
        bottom.step(
            times, array(values), where="post", color=colour, linewidth=1.2, linestyle=dash, label=name
        )
    bottom.set_yscale("symlog", linthresh=max(_floor(series.out_tok), 1e-3))
    bottom.set_title("Tokens")
    bottom.set_ylabel("tokens / s")
    bottom.set_xlabel(label)
    bottom.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.2))
    eng(bottom.yaxis)
    top.set_ylim(bottom=0)
    top.margins(x=0.01)
    return figure


def _floor(values: Sequence[float | None]) -> float:
    positive = [value for value in values if value]
    return float(np.quantile(positive, 0.05)) if positive else 1.0


def _weekly(description: Description) -> Figure | None:
    parts = [part for part in parts_of(description) if part.calendar]
    if not parts or description.span_s < 7 * 86400:
        return None
    figure, axes = grid_of(parts, 3.4)
    titles(axes, [part.panel.name for part in parts])
    for axis, part in zip(axes, parts, strict=False):
        days = array(part.calendar.per_day)  # type: ignore[union-attr]
        weeks = np.pad(days, (0, -len(days) % 7), constant_values=np.nan).reshape(-1, 7)
        mesh = axis.pcolormesh(
            np.arange(8), np.arange(len(weeks) + 1), weeks, cmap=HEAT, vmin=0, rasterized=True
        )
        axis.invert_yaxis()
        axis.set_xticks(np.arange(7) + 0.5, [str(day) for day in range(7)])
        axis.set(xlabel="day of the week (0: first day)", ylabel="week")
        axis.grid(False)
        bar = figure.colorbar(mesh, ax=axis, label="requests / day", pad=0.02)
        eng(bar.ax.yaxis)
        bar.outline.set_visible(False)
    return figure


def _hourly(description: Description) -> Figure | None:
    parts = [part for part in parts_of(description) if part.calendar]
    if not parts:
        return None
    figure, axes = grid_of(parts, 3.1)
    titles(axes, [part.panel.name for part in parts])
    for axis, part in zip(axes, parts, strict=False):
        _boxes(axis, part.calendar.hour_requests, BLUE)  # type: ignore[union-attr]
        share = part.calendar.daily_share  # type: ignore[union-attr]
        if share is not None:
            text = f"hour of day explains {share:.0%} of the variance"
            axis.annotate(
                text, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", color=SOFT, fontsize=9
            )
        room_above(axis, 1.2)
        axis.set(xlabel="hour of the day", ylabel="requests / hour")
    return figure


def _tokens_hourly(description: Description) -> Figure | None:
    parts = [part for part in parts_of(description) if part.calendar]
    if not parts:
        return None
    figure, axes = grid_of(parts, 3.1)
    titles(axes, [part.panel.name for part in parts])
    for axis, part in zip(axes, parts, strict=False):
        _boxes(axis, part.calendar.hour_in_tok, ORANGE, -0.2, "prompt")  # type: ignore[union-attr]
        _boxes(axis, part.calendar.hour_out_tok, GREEN, 0.2, "output")  # type: ignore[union-attr]
        top = max(axis.dataLim.y1, LINEAR_TOKENS)
        axis.set_yscale("symlog", linthresh=LINEAR_TOKENS, linscale=0.5)
        top *= 12 if axis is axes[0] else 2  # room for the legend
        axis.set_ylim(0, top)
        axis.set_yticks([0, *(10.0**power for power in range(3, int(np.log10(top)) + 1))])
        eng(axis.yaxis)
        axis.set(xlabel="hour of the day", ylabel="tokens / hour")
    axes[0].legend(loc="upper right", ncols=2)
    return figure


def _boxes(
    axis: Any, rows: Sequence[Sequence[Any]], colour: str, shift: float = 0.0, label: str = ""
) -> None:
    """Boxes p25-p75 with the median and whiskers to p5 and p95."""
    low, first, middle, third, high = array(rows).T
    at = np.arange(len(rows)) + shift
    width = 0.34 if shift else 0.62
    axis.vlines(at, low, high, color=colour, linewidth=1, alpha=0.8)
    axis.bar(
        at,
        third - first,
        width,
        first,
        color=colour,
        alpha=0.35,
        edgecolor=colour,
        linewidth=0.8,
        label=label,
    )
    axis.hlines(middle, at - width / 2, at + width / 2, color=INK, linewidth=1.6)
    axis.set_xticks(range(0, len(rows), 3 if len(rows) > 12 else 1))
    axis.set_ylim(bottom=0)
    eng(axis.yaxis)


PLOTS = (
    Plot(
        "load",
        "Load through time",
        "Requests and tokens per second. A partial last step counts its own length.",
        _load,
    ),
    Plot(
        "weekly",
        "Weeks",
        "Requests per day, a row per week; the weekday of day 0 is not known.",
        _weekly,
    ),
    Plot(
        "hourly",
        "Hours of the day",
        "Over all days: box p25 to p75 with the median, whiskers to p5 and p95.",
        _hourly,
    ),
    Plot(
        "tokens_hourly",
        "Tokens by hour of the day",
        "Prompt and output tokens per hour, boxes as above.",
        _tokens_hourly,
    ),
)
"""In the order of the page."""
