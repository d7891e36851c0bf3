"""Figures of arrivals: how bursty they are, when, and at which time scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from braid.lab.describe.burst import MIN_GAPS
from braid.lab.describe.description import Description
from braid.lab.figures.picture import Plot
from braid.lab.figures.style import (
    BLUE,
    FAINT,
    INK,
    PURPLE,
    RED,
    SKY,
    SOFT,
    array,
    clock,
    duration,
    new_figure,
    plain_log,
    room_above,
    seconds_axis,
    white,
    wide_log,
)


def _bursts(description: Description) -> Figure | None:
    arrivals = description.burstiness
    if arrivals is None:
        return None
    windows = arrivals.windows
    size, label = clock(description.span_s)
    figure, axes = new_figure(3, 1, 6.4, sharex=True)
    at = array(windows.start_s) / size
    many = len(at) > 150
    look: dict[str, Any] = (
        {"marker": ".", "markersize": 2, "linestyle": "none", "alpha": 0.5}
        if many
        else {"marker": "o", "markersize": 5, "drawstyle": "steps-mid"}
    )
    rate, shape, dispersion = axes[:, 0]
    middle = at + windows.window_s / size / 2
    rate.plot(middle, array(windows.rate), color=BLUE, **look)
    rate.set(title=f"Rate per window of {duration(windows.window_s)}", ylabel="requests / s")
    shape.plot(middle, array(windows.shape), color=RED, label="by moments, 1 / CV²", **look)
    if any(value is not None for value in windows.shape_mle):
        shape.plot(
            middle,
            array(windows.shape_mle),
            color=SKY,
            label="maximum likelihood",
            **{**look, "marker": "s" if not many else "."},
        )
    shape.axhline(1, color=SOFT, linestyle="--", linewidth=1)
    wide_log(shape)
    shape.set(
        title=f"Gamma shape of the gaps (1: Poisson, smaller: burstier; windows with {MIN_GAPS} gaps or more)",
        ylabel="shape",
    )
    white(shape.legend(loc="best", ncols=2))
    dispersion.plot(middle, array(windows.idc), color=PURPLE, **look)
    dispersion.axhline(1, color=SOFT, linestyle="--", linewidth=1)
    wide_log(dispersion)
    dispersion.set(
        title=f"Index of dispersion of counts per {duration(windows.idc_window_s)}, within each window",
        ylabel="Var / mean",
        xlabel=label,
    )
    room_above(rate, 1.12)
    if many:
        for axis, values in ((rate, windows.rate), (shape, windows.shape), (dispersion, windows.idc)):
            axis.plot(middle, _running_median(array(values)), color=INK, linewidth=1.3)
    return figure


def _running_median(values: np.ndarray, width: int = 73) -> np.ndarray:
    """Median of the ``width`` windows around each (73 of 20 min: a day)."""
    padded = np.pad(values, width // 2, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, width)
    enough = np.isfinite(views).sum(axis=1) > width // 4
    return np.where(enough, np.nanmedian(np.where(enough[:, None], views, 0.0), axis=1), np.nan)


def _dispersion(description: Description) -> Figure | None:
    arrivals = description.burstiness
    if arrivals is None:
        return None
    figure, axes = new_figure(1, 2, 3.7)
    left, right = axes[0]
    for judged, colour, name in (
        (True, BLUE, "this trace"),
        (False, FAINT, "below the clock's grid"),
    ):
        points = [point for point in arrivals.dispersion_curve if point.judged is judged and point.idc]
        if points:
            left.plot(
                [p.window_s for p in points],
                [p.idc for p in points],
                "o-",
                color=colour,
                markersize=4,
                label=name,
            )
    marked = [point for point in arrivals.dispersion if point.idc and point.judged]
    for point in marked:
        left.annotate(
            f"{point.idc:.3g}", (point.window_s, point.idc), textcoords="offset points", xytext=(-3, 9),
            ha="right", fontsize=9, color=INK,
        )  # fmt: skip
    left.plot(
        [p.window_s for p in marked],
        [p.idc for p in marked],
        "D",
        color=RED,
        markersize=6,
        label="1, 10, 60, 600 s",
    )
    left.axhline(1, color=SOFT, linestyle="--", linewidth=1, label="Poisson")
    left.set(
        xscale="log",
        yscale="log",
        title="Index of dispersion",
        xlabel="window of the counts",
        ylabel="Var / mean",
    )
    white(left.legend(loc="best"))
    left.margins(y=0.18)
    seconds_axis(left.xaxis)
    plain_log(left.yaxis)
    if arrivals.gap_curve and arrivals.gap_mean_s:
        gap, longer = array(arrivals.gap_curve).T
        right.plot(gap, np.maximum(longer, 1e-12), color=BLUE, label="this trace")
        right.plot(
            gap,
            np.exp(-gap / arrivals.gap_mean_s),
            color=SOFT,
            linestyle="--",
            linewidth=1.2,
            label="exponential, same mean",
        )
        right.set(
            xscale="log",
            yscale="log",
            title="Gaps between arrivals",
            xlabel="gap",
            ylabel="share of gaps that are longer",
        )
        right.set_ylim(max(longer[longer > 0].min() / 2, 1e-7), 1.6)
        right.legend(loc="lower left")
        seconds_axis(right.xaxis)
    else:
        right.set_axis_off()
    return figure


PLOTS = (
    Plot(
        "bursts",
        "Burstiness through time",
        "Gamma parameters of the gaps inside each window, which drift: one law for a whole trace hides it.",
        _bursts,
    ),
    Plot(
        "dispersion",
        "Burstiness by time scale",
        "Var / mean of counts in full windows, 1 at every scale for Poisson. A good fit of the gaps alone "
        "proves little.",
        _dispersion,
    ),
)
"""In the order of the page."""
