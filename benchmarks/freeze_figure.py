"""The figure of ``freeze.py``: ``python benchmarks/freeze_figure.py FIGURE.png RESULT.json [RESULT.json ...]``.

One row per server: every token of the streams as a dot at its time, around one long prompt. ``--only`` chooses servers
and their order, ``--window`` which of the long prompts is shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from braid.core.metrics import percentile
from braid.lab.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, SOFT, in_style, new_figure

COLOURS = (BLUE, GREEN, ORANGE, PURPLE)
BEFORE_S = 2.0
ROW_IN = 1.15
SHADE = "#f7e3c8"


def draw(servers: Mapping[str, Mapping[str, Any]], path: Path, number: int = 0) -> None:
    """All servers over the same seconds, which begin shortly before the long prompt is sent."""
    longest = max(found["windows"][number][1] - found["windows"][number][0] for found in servers.values())
    with in_style():
        figure, axes = new_figure(len(servers), 1, 1.1 + (ROW_IN + 0.5) * len(servers), sharex=True)
        for axis, (name, found) in zip(axes[:, 0], servers.items(), strict=True):
            _timeline(axis, found, number)
            axis.set_title(f"{name}: {_words(found)}", fontsize=10)
            axis.set_xlim(-BEFORE_S, 1.04 * longest + 1)
        axes[-1, 0].set_xlabel("seconds since the long prompt was sent")
        figure.savefig(path)


def _timeline(axis: Any, found: Mapping[str, Any], number: int) -> None:
    begin, end = found["windows"][number]
    axis.axvspan(0, end - begin, color=SHADE, linewidth=0, zorder=0)
    for row, stream in enumerate(found["streams"]):
        times = [at - begin for part in stream for at in part]
        axis.plot(
            times,
            [row] * len(times),
            "|",
            color=COLOURS[row % len(COLOURS)],
            markersize=7,
            markeredgewidth=0.9,
        )
    axis.plot(end - begin, len(found["streams"]), "^", color=INK, markersize=6, clip_on=False)
    label = f"first token of the long prompt after {end - begin:.1f} s   "
    axis.text(end - begin, len(found["streams"]), label, ha="right", va="center", fontsize=8, color=SOFT)
    axis.set_ylim(len(found["streams"]) + 0.7, -0.7)
    axis.set_yticks(
        range(len(found["streams"])), [f"stream {row + 1}" for row in range(len(found["streams"]))]
    )
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.grid(visible=False, axis="y")


def _words(found: Mapping[str, Any]) -> str:
    """The numbers of all its windows."""
    tbt, rate = found["tbt_ms"], found["decode_tok_s"]
    worst = f"p99 between two tokens {tbt['p99'] / 1000:.2f} s" if tbt else "no token"
    return f"{worst}, {rate['inside']:.1f} tokens/s inside ({rate['outside']:.0f} outside)"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("figure", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--only", help="names of servers, in the order in which they are to be shown")
    parser.add_argument("--window", type=int, default=0)
    options = parser.parse_args(words)
    servers: dict[str, Any] = {}
    for path in options.results:
        servers |= json.loads(path.read_text(encoding="utf-8"))["servers"]
    if options.only is not None:
        servers = {name.strip(): servers[name.strip()] for name in options.only.split(",")}
    for name, found in servers.items():
        print(f"{name}: {_words(found)}, TTFT {percentile(found['ttft_s'], 50):.1f} s")
    draw(servers, options.figure, options.window)


if __name__ == "__main__":
    main()
