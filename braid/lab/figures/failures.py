"""The figure of failures against load."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from braid.lab.describe.description import Description
from braid.lab.figures.picture import Plot
from braid.lab.figures.style import RED, SKY, SOFT, array, duration, new_figure, percent, plain_log


def _failures(description: Description) -> Figure | None:
    found = description.failures
    if not found.load:
        return None
    figure, axes = new_figure(1, 1, 3.9)
    axis = axes[0, 0]
    load, share, low, high = (
        array(values) for values in (found.load, found.class_share, found.low, found.high)
    )
    points = array(found.scatter)
    axis.plot(
        points[:, 0],
        points[:, 1],
        ".",
        color=SKY,
        alpha=0.35,
        markersize=4,
        label=f"one window of {duration(found.window_s)}",
    )
    error = np.abs(np.stack([share - low, high - share]))
    axis.errorbar(load, share, error, fmt="o-", color=RED, capsize=3, label="windows by load, 95 % interval")
    if found.share is not None:
        axis.axhline(
            found.share, color=SOFT, linestyle="--", linewidth=1, label=f"whole trace: {found.share:.2%}"
        )
    rank = "" if found.spearman is None else f" (rank correlation {found.spearman:.2f})"
    axis.set(
        xscale="log",
        title=f"Failed requests against load{rank}",
        xlabel="requests / s in the window",
        ylabel="share that failed",
    )
    axis.set_ylim(0, min(1.02, max(1.3 * high.max(), float(np.quantile(points[:, 1], 0.97)) * 1.1)))
    percent(axis.yaxis, None)
    plain_log(axis.xaxis)
    axis.legend(loc="upper left")
    return figure


PLOTS = (
    Plot(
        "failures",
        "Failures against load",
        "Failed share per window by its load; the interval takes failures as independent, so it is too "
        "narrow where they come in bursts.",
        _failures,
    ),
)
"""In the order of the page."""
