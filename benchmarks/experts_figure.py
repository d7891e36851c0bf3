"""The figure of ``experts.py``, from its JSON: ``python benchmarks/experts_figure.py RESULT.json FIGURE.png``.

Milliseconds per token against the budget of memory, for every load: what was computed, what was waited for, the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from experts_work import FLOOR, place_of
from matplotlib.patches import Patch

from braid.lab.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, SOFT, in_style, new_figure

COLOURS = {
    "mmap": RED,
    "mmap-ahead": ORANGE,
    "lru-serial": PURPLE,
    "static": SKY,
    "ours": BLUE,
    "ours+oracle": GREEN,
}
WIDTH = 0.84
"""Of a group of bars."""
CUT = "mmap"
"""Its bars are cut off where they are longer than all others, and their numbers stand in them."""
ROOM = 1.12
"""Of a panel's height, above the longest bar."""


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel per load of decodes."""
    rows = [row for row in result["rows"] if row["load"][0] != "p"]
    loads = list(dict.fromkeys(row["load"] for row in rows))
    if not loads:
        raise SystemExit("no load of decodes was measured: there is nothing to draw")
    with in_style():
        figure, axes = new_figure(len(loads), 1, 1.1 + 2.4 * len(loads))
        budgets = sorted({row["budget %"] for row in rows if row["contender"] != FLOOR})
        for axis, load in zip(axes[:, 0], loads, strict=True):
            _panel(axis, [row for row in rows if row["load"] == load], budgets)
            if axis is axes[0, 0]:
                _legend(axis, {row["contender"] for row in rows} - {FLOOR})
            axis.set_title(f"{load}: {result['loads'].get(load, load)}", fontsize=10)
            axis.set_ylabel("ms per token")
        axes[-1, 0].set_xlabel("memory for experts, % of their bytes")
        figure.text(0.99, 0.99, result["what"], ha="right", va="top", fontsize=7, color=SOFT)
        figure.savefig(path)


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> None:
    """Full colour: computing experts; pale: standing still; white: planning, routers and what else there is."""
    bars = [row for row in rows if row["contender"] != FLOOR]
    names = sorted({row["contender"] for row in bars}, key=place_of)
    top = ROOM * max(row["ms/token"] for row in bars if row["contender"] != CUT or len(names) == 1)
    for row in bars:
        width = WIDTH / len(names)
        at = budgets.index(row["budget %"]) - WIDTH / 2 + width * (names.index(row["contender"]) + 0.5)
        _bar(axis, at, 0.9 * width, row, COLOURS.get(row["contender"], INK))
        if row["ms/token"] > top:
            cut = f"{row['ms/token']:.0f} ms"
            axis.text(at, 0.98 * top, cut, fontsize=7, color="white", rotation=90, ha="center", va="top")
    for row in rows:
        if row["contender"] == FLOOR:
            axis.axhline(row["ms/token"], color=SOFT, linewidth=1, linestyle="--")
            at = (len(budgets) - 0.5, row["ms/token"])
            axis.text(*at, "all resident ", fontsize=7, color=SOFT, ha="right", va="bottom")
    axis.set_ylim(0, top)
    axis.set_xlim(-0.5, len(budgets) - 0.5)
    axis.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axis.grid(visible=False, axis="x")


def _legend(axis: Any, contenders: Collection[str]) -> None:
    names = sorted(contenders, key=place_of)
    handles = [Patch(color=COLOURS.get(name, INK), label=name) for name in names]
    shades = [
        Patch(color=SOFT, label="computes"),
        Patch(color=SOFT, alpha=0.35, label="waits"),
        Patch(facecolor="white", edgecolor=SOFT, label="the rest"),
    ]
    axis.legend(handles=[*handles, *shades], fontsize=6.5, ncols=3, loc="upper right")


def _bar(axis: Any, at: float, width: float, row: Mapping[str, Any], colour: str) -> None:
    compute, stall, wall = row["compute"], row["stall"], row["ms/token"]
    axis.bar(at, compute, width, color=colour)
    axis.bar(at, stall, width, bottom=compute, color=colour, alpha=0.35)
    axis.bar(
        at,
        max(0.0, wall - compute - stall),
        width,
        bottom=compute + stall,
        color="white",
        edgecolor=colour,
        linewidth=0.8,
    )
    if row["runs"] > 1:
        axis.plot((at, at), (row["low"], row["high"]), color=INK, linewidth=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.figure)


if __name__ == "__main__":
    main()
