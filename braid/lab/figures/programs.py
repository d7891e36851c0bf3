"""Figures of programs: turns, gaps, growing prompts, and prefixes seen before."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from braid.lab.arrays import QUANTILES
from braid.lab.describe.description import Description
from braid.lab.figures.picture import Plot
from braid.lab.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    array,
    duration,
    eng,
    new_figure,
    percent,
    plain_log,
    seconds_axis,
)


def _turns(description: Description) -> Figure | None:
    found, between = description.turns, description.gaps
    if found is None and between is None:
        return None
    figure, axes = new_figure(1, 2, 3.7)
    left, right = axes[0]
    if found is not None:
        at, at_least = array(found.survival).T
        left.plot(at, at_least, "o-", color=BLUE, markersize=3.5, label=f"{found.num_programs:,} programs")
        over = np.geomspace(1, found.max, 200)
        text = f"geometric, p = {found.geometric_p:.3f}, KS {found.geometric_ks:.2f}"
        left.plot(over, (1 - found.geometric_p) ** (over - 1), color=RED, linestyle="--", label=text)
        left.set(
            yscale="log",
            xlabel="turns",
            ylabel="share with at least as many",
            title="Turns per program",
        )
        if found.max > 40:
            left.set_xscale("log")
            plain_log(left.xaxis)
        left.set_ylim(0.5 / found.num_programs, 1.6)
        left.legend(loc="lower left")
    else:
        left.set_axis_off()
    if between is not None and between.curve:
        gap, share = array(between.curve).T
        right.plot(gap, share, color=GREEN, linewidth=2.2)
        right.fill_between(gap, share, color=GREEN, alpha=0.12, linewidth=0)
        for quantile, name in ((4, "p50"), (6, "p90"), (8, "p99")):
            value = between.quantiles_s[quantile]
            if value and value > 0:
                height = (0.5, 0.9, 0.99)[(quantile - 4) // 2]
                right.plot(value, height, "o", color=INK, markersize=4)
                right.annotate(
                    f"{name}: {duration(value)}",
                    (value, height),
                    textcoords="offset points",
                    xytext=(7, -11),
                    fontsize=9,
                )
        right.set(
            xscale="log",
            ylim=(0, 1.04),
            xlabel="gap between turns",
            ylabel="share of gaps at most that long",
            title="Think and tool time",
        )
        seconds_axis(right.xaxis)
        percent(right.yaxis)
    else:
        right.set_axis_off()
    return figure


def _growth(description: Description) -> Figure | None:
    found = description.growth
    if found is None or len(found.by_turn) < 2:
        return None
    figure, axes = new_figure(1, 2, 3.6, width_ratios=(1.7, 1))
    left, right = axes[0]
    turn, programs, low, middle, high = array(found.by_turn).T
    left.fill_between(turn, low, high, color=ORANGE, alpha=0.25, linewidth=0, label="half of the programs")
    left.plot(turn, middle, color=RED, label="median")
    left.set(title=f"Prompt by turn: {found.verdict}", xlabel="turn", ylabel="prompt tokens")
    left.set_ylim(bottom=0)
    left.legend(loc="lower right")
    eng(left.yaxis)
    right.plot(turn, programs, color=BLUE)
    right.fill_between(turn, programs, color=BLUE, alpha=0.15, linewidth=0)
    right.set(title="Programs that reach it", xlabel="turn", ylabel="programs", ylim=(0, None))
    eng(right.yaxis)
    return figure


def _sharing(description: Description) -> Figure | None:
    found = description.sharing
    if found is None:
        return None
    figure, axes = new_figure(1, 2, 3.6, width_ratios=(1.7, 1))
    left, right = axes[0]
    if found.reuse:
        names = [f"{reuse.block_size:,}" for reuse in found.reuse]
        at = np.arange(len(names))
        for shift, rates, colour, label in (
            (-0.2, [reuse.block_hit_rate for reuse in found.reuse], BLUE, "of blocks"),
            (0.2, [reuse.token_hit_rate for reuse in found.reuse], ORANGE, "of tokens"),
        ):
            bars = left.bar(at + shift, rates, 0.38, color=colour, label=label)
            left.bar_label(bars, [f"{100 * rate:.1f}" for rate in rates], fontsize=8.5, padding=2)
        left.set_xticks(at, names)
        left.set(
            title="Hit rate of a cache without limit", xlabel="block size (tokens)", ylabel="seen before"
        )
        left.legend(loc="upper right", ncols=2, bbox_to_anchor=(1.02, 1.0))
        highest = max(max(entry.block_hit_rate, entry.token_hit_rate) for entry in found.reuse)
        left.set_ylim(0, min(1.28 * max(highest, 0.01), 1.3))
        left.grid(axis="x", visible=False)
        percent(left.yaxis)
    else:
        seen = found.cached_share or 0.0
        left.barh([0], [seen], color=BLUE, height=0.4)
        left.barh([0], [1 - seen], left=[seen], color=FAINT, height=0.4)
        left.annotate(
            f"{seen:.1%} seen before", (0.02, 0), va="center", color="white", fontsize=13, fontweight="bold"
        )
        left.set(title="Prompt tokens, as the source says", xlim=(0, 1), ylim=(-0.7, 0.7), yticks=[])
        left.grid(False)
        percent(left.xaxis)
    right.plot(array(found.hit_quantiles), QUANTILES, "o-", color=BLUE, markersize=4)
    right.set(
        title="Share of a prompt seen before",
        xlabel="share of the prompt",
        ylabel="requests with at most that",
        xlim=(-0.02, 1.02),
        ylim=(0, 1.03),
    )
    percent(right.xaxis)
    percent(right.yaxis)
    return figure


PLOTS = (
    Plot(
        "turns",
        "Turns and gaps",
        "How long programs are, and how long they pause between turns.",
        _turns,
    ),
    Plot(
        "growth",
        "Prompts within programs",
        "Whether a prompt holds the turns before it.",
        _growth,
    ),
    Plot(
        "sharing",
        "Prefixes seen before",
        "What a prefix cache without limit would hold when each prompt arrives.",
        _sharing,
    ),
)
"""In the order of the page."""
