"""The figure of ``experts.py``, from its JSON: ``python benchmarks/experts_figure.py RESULT.json FIGURE.png``.

Milliseconds per token against the budget of memory, for every load: what was computed, what was waited for, the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braid.lab.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, SOFT, in_style, new_figure

COLOURS = {
    "mmap": RED,
    "mmap-ahead": ORANGE,
    "lru-serial": PURPLE,
    "static": SKY,
    "ours": BLUE,
    "ours+oracle": GREEN,
    "resident": SOFT,
}
WIDTH = 0.8
"""Of a group of bars."""


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel per load of decodes."""
    rows = [row for row in result["rows"] if row["load"][0] != "p" and row["ms/token"] is not None]
    loads = list(dict.fromkeys(row["load"] for row in rows))
    with in_style():
        figure, axes = new_figure(len(loads), 1, 0.8 + 2.5 * len(loads))
        for axis, load in zip(axes[:, 0], loads, strict=True):
            _bars(axis, [row for row in rows if row["load"] == load])
            axis.set_title(f"{load}: {result['loads'].get(load, load)}", fontsize=10)
            axis.set_ylabel("ms per token")
        axes[-1, 0].set_xlabel(f"memory for experts, % of their bytes\n{result['what']}")
        axes[0, 0].legend(fontsize=7, ncols=3)
        figure.savefig(path)


def _bars(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Dark: computing experts; pale: standing still; white: planning, routers and what else there is."""
    budgets = sorted({row["budget %"] for row in rows})
    names = [name for name in COLOURS if any(row["contender"] == name for row in rows)]
    names += sorted({row["contender"] for row in rows} - set(names))
    width = WIDTH / len(names)
    for place, name in enumerate(names):
        found = [row for row in rows if row["contender"] == name]
        at = [budgets.index(row["budget %"]) - WIDTH / 2 + width * (place + 0.5) for row in found]
        colour = COLOURS.get(name, INK)
        compute = [row["compute"] for row in found]
        stall = [row["stall"] for row in found]
        rest = [max(0.0, row["ms/token"] - row["compute"] - row["stall"]) for row in found]
        over = [one + two for one, two in zip(compute, stall, strict=True)]
        axis.bar(at, compute, 0.9 * width, color=colour, label=name)
        axis.bar(at, stall, 0.9 * width, bottom=compute, color=colour, alpha=0.4)
        axis.bar(at, rest, 0.9 * width, bottom=over, color="white", edgecolor=colour, linewidth=0.8)
        for x, row in zip(at, found, strict=True):
            axis.plot((x, x), (row["low"], row["high"]), color=INK, linewidth=1)
    axis.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
    axis.grid(visible=False, axis="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.result.read_text(encoding="utf-8")), options.figure)


if __name__ == "__main__":
    main()
