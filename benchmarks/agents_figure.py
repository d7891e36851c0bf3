"""The figure of ``agents.py``, from its JSON: ``python benchmarks/agents_figure.py RESULT.json FIGURE.png``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from braid.lab.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    eng,
    in_style,
    new_figure,
    seconds_axis,
)
from braid.sim.compare import interval

COLOURS = {"lru": SOFT, "program-fcfs": SKY, "pin-2s": ORANGE, "continuum": PURPLE, "braid": BLUE}
MORE = (GREEN, RED, INK)
"""For other policies."""
ORIGINS = {
    "compulsory": (SOFT, "never seen before"),
    "recompute": (RED, "computed again"),
    "device_hit": (GREEN, "found"),
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """JCT by policy, tokens by origin, and how long first and later turns waited for their first token."""
    policies = result["policies"]
    names = list(policies)
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | dict(zip(others, MORE * len(others), strict=False))
    with in_style():
        figure, axes = new_figure(2, 2, 7.6)
        _completion(axes[0, 0], policies, result.get("simulated", {}), colours)
        _tokens(axes[0, 1], policies)
        for axis, which in ((axes[1, 0], "first"), (axes[1, 1], "later")):
            _first_tokens(axis, policies, colours, which)
        axes[1, 0].legend(loc="lower right", fontsize=8)
        figure.savefig(path)


def _completion(
    axis: Any, policies: Mapping[str, Any], simulated: Mapping[str, Any], colours: Mapping[str, str]
) -> None:
    """Bars: the rounds' median, its interval as far as there is one, and the simulator's word."""
    widest = 0.0
    for place, (name, policy) in enumerate(policies.items()):
        rounds = [numbers["jct_s"]["mean"] for numbers in policy["rounds"]]
        middle = median(rounds)
        low, high = interval(rounds) if len(rounds) > 1 else (middle, middle)
        axis.barh(place, middle, color=colours[name], height=0.66)
        axis.plot((max(low, 0.0), high), (place, place), color=INK, linewidth=1.4)
        end = max(middle, high)
        if name in simulated:
            word = simulated[name]["jct_s"]["mean"]
            axis.plot(word, place, "D", markersize=5, color="white", markeredgecolor=INK)
            end = max(end, word)
        label = f"  {middle:.0f} s, {policy['versus']['jct_ratio']:.2f}×"
        axis.text(end, place, label, va="center", fontsize=8, color=INK)
        widest = max(widest, end)
    axis.set_yticks(range(len(policies)), list(policies), fontsize=8)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, 1.4 * widest)
    words = "seconds; lines: 95 % of the rounds" + ("; diamonds: simulated" if simulated else "")
    axis.set_xlabel(words, fontsize=8)
    axis.set_title("Mean job completion time")


def _tokens(axis: Any, policies: Mapping[str, Any]) -> None:
    """Of all prompts, stacked."""
    left = np.zeros(len(policies))
    places = np.arange(len(policies))
    for origin, (colour, label) in ORIGINS.items():
        counts = np.array([policy["tokens"][origin] for policy in policies.values()], dtype=float)
        axis.barh(places, counts, left=left, color=colour, height=0.66, label=label)
        left += counts
    axis.set_yticks(places, list(policies), fontsize=8)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, 1.02 * float(left.max()))
    eng(axis.xaxis)
    axis.set_title("Prompt tokens by origin")
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=3, fontsize=8, borderpad=0, columnspacing=1
    )


def _first_tokens(axis: Any, policies: Mapping[str, Any], colours: Mapping[str, str], which: str) -> None:
    """All rounds' turns as cumulative shares."""
    for name, policy in policies.items():
        values = np.sort([value for each in policy["samples"] for value in each[f"ttft_{which}_s"]])
        if values.size:
            shares = np.arange(values.size + 1) / values.size
            axis.step([values[0], *values], shares, where="post", color=colours[name], label=name)
    axis.set_xscale("log")
    seconds_axis(axis.xaxis)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("seconds to the first token", fontsize=9)
    axis.set_ylabel("share of turns", fontsize=9)
    axis.set_title(f"Time to the first token, {which} turns")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args(words)
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.figure)


if __name__ == "__main__":
    main()
