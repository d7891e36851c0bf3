"""Tables and the figure of ``agents_simulated.py``; ``python benchmarks/agents_simulated_show.py RESULT.json PNG``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.console import Console
from rich.table import Table

from braid.lab.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    YELLOW,
    duration,
    in_style,
    new_figure,
    percent,
)

COLOURS = {
    "lru": SOFT,
    "program-fcfs": SKY,
    "resident-first": GREEN,
    "pin-2s": ORANGE,
    "continuum": PURPLE,
    "braid": BLUE,
    "oracle": INK,
}
ORIGINS = {
    "compulsory": (SOFT, "never seen before"),
    "recompute": (RED, "computed again"),
    "device_hit": (GREEN, "found on the device"),
    "host_reload": (YELLOW, "found below"),
}
HEADLINES = ("weka", "lmcache", "weka-host", "lmcache-host")
COMPARED = (*HEADLINES, "swe-bench-0.02", "swe-bench-0.03", "swe-bench-0.05", "swe-bench-0.1", "bfcl")
TOKENS_OF = ("lru", "resident-first", "continuum", "braid")
WAITS_S = (1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
WIDEST = 180


def show_study(name: str, study: Mapping[str, Any]) -> None:
    """Variants side by side."""
    load = study["config"]
    title = (
        f"{name}: {study['words']}; {load['programs']} programs at {load['rate']:g}/s, "
        f"host tier {load['host_kv_tokens']:,} tokens"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    heads = (
        "JCT mean", "lru / it", "continuum / it", "p95", "first TTFT p50", "max", "max / lru's", "later p50", "p99",
        "again / new", "hits", "preempted",
    )  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for variant, numbers in study["policies"].items():
        table.add_row(variant, *_cells(numbers))
    _print(table)
    if not study["same_work"]:
        print("The policies have not played the same turns: do not compare them.")


def _cells(numbers: Mapping[str, Any]) -> list[str]:
    mean, times = numbers["mean"], numbers["times"]
    low, high = numbers["intervals"]["jct_mean"]
    return [
        f"{_seconds(mean['jct_s']['mean'])} ±{_seconds((high - low) / 2)}",
        _times(times, "lru", "gain"),
        _times(times, "continuum", "gain"),
        _seconds(mean["jct_s"]["p95"]),
        _seconds(mean["ttft_first_s"]["p50"]),
        _seconds(mean["ttft_first_s"]["max"]),
        _times(times, "lru", "first_max"),
        _seconds(mean["ttft_later_s"]["p50"]),
        _seconds(mean["ttft_later_s"]["p99"]),
        f"{mean['recompute_per_compulsory']:.2f}",
        f"{mean['hit_rate']:.0%}",
        f"{mean['preemptions']:.0f}",
    ]


def _times(times: Mapping[str, Any], base: str, figure: str) -> str:
    found = times.get(base, {}).get(figure)
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['value']:.2f} ±{(high - low) / 2:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show_goals(result: Mapping[str, Any]) -> None:
    table = Table("study", "goal", "value", "95 %", "met", title="goals", title_justify="left")
    for goal in result["goals"]:
        low, high = goal["interval"]
        cells = (goal["study"], goal["goal"], f"{goal['value']:.3f}", f"{low:.3f} .. {high:.3f}")
        table.add_row(*cells, "yes" if goal["met"] else "NO")
    _print(table)
    print(f"times: {result['simulated']}; {result['cpu_s'] / 60:.0f} minutes of CPU")
    for line in result["failed"]:
        print(f"failed: {line}")


def _print(table: Table) -> None:
    console = Console()
    console.width = max(console.width, WIDEST)
    console.print(table, crop=False)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """JCT by policy and study, waits for first tokens, tokens by origin, the sweep of eta, and the ablations."""
    studies = result["studies"]
    with in_style():
        figure, axes = new_figure(3, 2, 12.5)
        figure.subplots_adjust(hspace=0.42)  # names of policies stand upright under one of the rows
        grid = axes[0, 0].get_gridspec()
        for axis in axes[0]:
            axis.remove()
        _gains(figure.add_subplot(grid[0, :]), studies)
        _waits(axes[1, 0], studies)
        _tokens(axes[1, 1], studies)
        _etas(axes[2, 0], studies)
        _ablations(axes[2, 1], studies)
        figure.savefig(path)


def _gains(axis: Any, studies: Mapping[str, Any]) -> None:
    names = [name for name in COMPARED if name in studies]
    policies = [policy for policy in COLOURS if policy != "lru"]
    axis.set_title("mean JCT of lru / that of the policy, same seeds; lines: 95 %")
    axis.axhline(1.0, color=SOFT, linewidth=1.2)
    for number, policy in enumerate(policies):
        at = [place + 0.12 * (number - (len(policies) - 1) / 2) for place in range(len(names))]
        found = [_figure(studies[name], policy, "lru", "gain") for name in names]
        _points(axis, at, found, COLOURS[policy], policy)
    _categories(axis, names)
    _factors(axis.yaxis, axis)
    axis.set_ylim(top=1.35 * axis.dataLim.y1)
    axis.legend(loc="upper center", ncols=6, fontsize=8.5)


def _waits(axis: Any, studies: Mapping[str, Any]) -> None:
    names = [name for name in HEADLINES if name in studies]
    axis.set_title("longest TTFT: first turns ●, later ○")
    for number, policy in enumerate(COLOURS):
        for place, name in enumerate(names):
            if policy in studies[name]["policies"]:
                mean = studies[name]["policies"][policy]["mean"]
                at = place + 0.11 * (number - (len(COLOURS) - 1) / 2)
                first, later = mean["ttft_first_s"]["max"], mean["ttft_later_s"]["max"]
                axis.plot((at, at), (first, later), color=COLOURS[policy], linewidth=0.8)
                axis.plot(at, first, "o", color=COLOURS[policy], markersize=5)
                axis.plot(
                    at, later, "o", markerfacecolor="white", markeredgecolor=COLOURS[policy], markersize=5
                )
    _categories(axis, names)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(FixedLocator(WAITS_S))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))


def _tokens(axis: Any, studies: Mapping[str, Any]) -> None:
    names = [name for name in HEADLINES if name in studies]
    axis.set_title("prompts' tokens by origin")
    labels: dict[float, str] = {}
    for place, name in enumerate(names):
        for number, policy in enumerate(TOKENS_OF):
            if policy not in studies[name]["policies"]:
                continue
            tokens = studies[name]["policies"][policy]["mean"]["tokens"]
            at, height = place * (len(TOKENS_OF) + 1.0) + number, 0.0
            labels[at] = policy
            for origin, (colour, words) in ORIGINS.items():
                share = tokens[origin] / sum(tokens.values())
                label = words if not place and not number else None
                axis.bar(at, share, bottom=height, color=colour, width=0.85, label=label)
                height += share
        axis.text(place * (len(TOKENS_OF) + 1.0) + 1.5, 1.03, name, ha="center", fontsize=8)
    axis.set_xticks(list(labels), list(labels.values()), rotation=90, fontsize=7.5)
    axis.set_ylim(0, 1.42)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    percent(axis.yaxis)
    axis.grid(visible=False, axis="x")
    if names:
        axis.legend(loc="upper center", ncols=2, fontsize=8)


def _etas(axis: Any, studies: Mapping[str, Any]) -> None:
    axis.set_title("mean JCT of lru / the policy, by eta")
    etas = sorted(float(name.removeprefix("eta-")) for name in studies if name.startswith("eta-"))
    axis.set_visible(bool(etas))
    axis.axhline(1.0, color=SOFT, linewidth=1.2)
    shown: list[Mapping[str, Any] | None] = []
    for policy in COLOURS:
        found = [_figure(studies[f"eta-{eta:g}"], policy, "lru", "gain") for eta in etas]
        shown += found
        if policy != "lru" and any(found):
            _points(axis, etas, found, COLOURS[policy], policy, joined=True)
    axis.set_xlabel("eta of the turn counts; 1: all equally long, 0: the past tells nothing", fontsize=8.5)
    values = [each["value"] for each in shown if each is not None]
    axis.set_ylim(0, 1.35 * max([1.0, *values]))  # a wide interval is cut, not the lines pressed
    if etas:
        axis.legend(fontsize=8.5)


def _ablations(axis: Any, studies: Mapping[str, Any]) -> None:
    axis.set_title("mean JCT / braid's: weka ●, lmcache ○")
    names: list[str] = []
    for shift, study, face in ((-0.14, "ablation-weka", BLUE), (0.14, "ablation-lmcache", "white")):
        if study not in studies:
            continue
        names = names or [name for name in studies[study]["policies"] if name != "braid"]
        for place, name in enumerate(names):
            found = _figure(studies[study], name, "braid", "jct_mean")
            if found is not None:
                axis.plot(found["interval"], (place + shift,) * 2, color=BLUE, linewidth=1.2)
                axis.plot(
                    found["value"],
                    place + shift,
                    "o",
                    markerfacecolor=face,
                    markeredgecolor=BLUE,
                    markersize=5,
                )
    axis.set_visible(bool(names))
    axis.axvline(1.0, color=SOFT, linewidth=1.2)
    short = [name.replace("braid-without-", "no ").replace("lru-with-", "only ") for name in names]
    axis.set_yticks(range(len(names)), short, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    _factors(axis.xaxis, axis)


def _figure(study: Mapping[str, Any], policy: str, base: str, figure: str) -> Mapping[str, Any] | None:
    found = study["policies"].get(policy)
    return None if found is None else found["times"].get(base, {}).get(figure)


def _points(
    axis: Any,
    at: Sequence[float],
    found: Sequence[Mapping[str, Any] | None],
    colour: str,
    label: str,
    joined: bool = False,
) -> None:
    """With their intervals; where there is none, nothing."""
    known = [(x, each) for x, each in zip(at, found, strict=True) if each is not None]
    for x, each in known:
        axis.plot((x, x), [max(end, 0.05) for end in each["interval"]], color=colour, linewidth=1.2)
    places, values = [x for x, _ in known], [each["value"] for _, each in known]
    axis.plot(places, values, "o-" if joined else "o", color=colour, markersize=5, label=label)


def _categories(axis: Any, names: Sequence[str]) -> None:
    short = ["\n".join(name.rsplit("-", 1)) for name in names]
    axis.set_xticks(range(len(names)), short, fontsize=8)
    axis.grid(visible=False, axis="x")


def _factors(side: Any, axis: Any) -> None:
    """A logarithmic axis of ratios."""
    axis.set_yscale("log") if side is axis.yaxis else axis.set_xscale("log")
    side.set_major_locator(FixedLocator([0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12]))
    side.set_tick_params(labelsize=8)
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.result.read_text()), options.figure)


if __name__ == "__main__":
    main()
