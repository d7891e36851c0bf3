"""The figure of ``phases.py``, from its JSON: ``python benchmarks/phases_figure.py RESULT.json FIGURE.png``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from braid.lab.figures.style import BLUE, FINE_S, GREEN, INK, ORANGE, RED, SOFT, in_style, new_figure

LANES = "split", "auto"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Every mode as a point, per workload: long gaps between tokens against waits for first tokens; and its goodput."""
    workloads = result["workloads"]
    with in_style():
        figure, axes = new_figure(len(workloads), 2, 0.6 + 3.0 * len(workloads))
        for row, (name, modes) in zip(axes, workloads.items(), strict=True):
            _trade(row[0], modes, result["config"])
            row[0].set_title(name[0].upper() + name[1:])
            _goodput(row[1], modes)
            row[1].set_title("Requests per minute within the limits")
        figure.savefig(path)


def _colour(mode: str) -> str:
    if mode in LANES:
        return BLUE
    if mode.startswith("static"):
        return GREEN
    return RED if mode == "prefill-first" else ORANGE


def _trade(axis: Any, modes: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    limit = config["slo_tbt_ms"] / 1000
    points = {
        mode: (found["ttft_ms"]["p50"] / 1000, found["tbt_ms"]["p99"] / 1000) for mode, found in modes.items()
    }
    chunked = sorted(point for mode, point in points.items() if mode.startswith("mixed"))
    if chunked:
        axis.plot(*zip(*chunked, strict=True), color=ORANGE, linewidth=1, alpha=0.6)
    for mode, (ttft, tbt) in points.items():
        axis.plot(ttft, tbt, "o", color=_colour(mode), markersize=6 if mode not in LANES else 8)
        axis.annotate(mode, (ttft, tbt), xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=INK)
    axis.axhline(limit, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_yscale("log")
    axis.set_xlim(0, 1.25 * max(point[0] for point in points.values()))
    axis.set_ylim(
        0.6 * min(limit, *(tbt for _, tbt in points.values())), 2 * max(tbt for _, tbt in points.values())
    )
    axis.yaxis.set_major_locator(FixedLocator(FINE_S))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("seconds to the first token, median", fontsize=9)
    axis.set_ylabel("between tokens, p99, s", fontsize=9)


def _goodput(axis: Any, modes: Mapping[str, Any]) -> None:
    rates = [60 * found["goodput"] for found in modes.values()]
    for place, (mode, rate) in enumerate(zip(modes, rates, strict=True)):
        axis.barh(place, rate, color=_colour(mode), height=0.66)
        axis.text(rate, place, f" {rate:.1f}", va="center", fontsize=8, color=INK)
    axis.set_yticks(range(len(modes)), list(modes), fontsize=8)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, 1.2 * max(rates) or 1)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args(words)
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.figure)


if __name__ == "__main__":
    main()
