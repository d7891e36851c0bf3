"""HybriMoE's setting in virtual time: every part alone and all together, beside what was published.

``python benchmarks/expert_timeline.py --json benchmarks/results/expert-timeline.json --figure FIGURE.png``

Three models at 25, 50 and 75 % of their experts on the GPU, batch 1, on the machine of the paper as data sheets
describe it, and on the same with the CPU's speed fitted to one published number. Routing is synthetic, predictions are
an oracle's with a published precision; nothing here was measured. Ratios are to a fixed set by frequency on the GPU
with all misses on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from braid.lab.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, SOFT, in_style, new_figure
from braid.policy.experts.catalog import STATIC
from braid.sim.experts.machines import costs_of
from braid.sim.experts.study import (
    PAPER,
    PAPER_MEAN,
    PROFILE_TOKENS,
    VARIANTS,
    WARM_STEPS,
    simulate,
    summary,
    synthetic_load,
)
from braid.sim.sizes import model_named

VERSION = 1
MODELS = ("qwen2-57b-a14b", "deepseek-v2-lite", "mixtral-8x7b")
FRACTIONS = (0.25, 0.5, 0.75)
MACHINES = ("a6000-xeon10", "a6000-xeon10-fitted")
PHASES = ("prefill", "decode")
SHOWN = ("+ scheduling", "+ prefetch", "+ caching", "all")
COLOURS = {"+ scheduling": SKY, "+ prefetch": ORANGE, "+ caching": PURPLE, "all": BLUE}
PAPER_ORDER = ("all", "+ scheduling", "+ caching", "+ prefetch")
"""Of decode, fastest first."""


def study(machine: str, name: str, prompt: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """One model at every fraction, with every variant."""
    model = model_named(name)
    costs = costs_of(machine, model, "int4")
    load = synthetic_load(model, prompt=prompt, decodes=tokens, seed=seed)
    found = []
    for fraction in FRACTIONS:
        runs = {
            variant: summary(simulate(load, costs, fraction, parts, seed=seed), costs)
            for variant, parts in VARIANTS.items()
        }
        found.append(
            {
                "machine": machine,
                "model": name,
                "fraction": fraction,
                "seed": seed,
                "words": costs.words,
                "times": costs.times._asdict() | {"dense_s": costs.dense_s, "dense_row_s": costs.dense_row_s},
                "routing": load.words,
                "runs": runs,
                "times_faster": {phase: _ratios(runs, phase) for phase in PHASES},
            }
        )
    return found


def _ratios(runs: Mapping[str, Any], phase: str) -> dict[str, float]:
    baseline = runs["baseline"][phase]["seconds_per_step"]
    return {variant: baseline / run[phase]["seconds_per_step"] for variant, run in runs.items()}


def measure(prompt: int, tokens: int, seed: int, processes: int) -> dict[str, Any]:
    jobs = [(machine, name, prompt, tokens, seed) for machine in MACHINES for name in MODELS]
    with ProcessPoolExecutor(processes) as pool:
        studies = [each for found in pool.map(study, *zip(*jobs, strict=True)) for each in found]
    return {
        "version": VERSION,
        "simulated": True,
        "label": "simulated from data sheets with synthetic routing; nothing was measured",
        "prompt": prompt,
        "tokens": tokens,
        "warm_steps": WARM_STEPS,
        "profile_tokens": PROFILE_TOKENS,
        "static_policy": STATIC,
        "studies": studies,
        "mean_times_faster": {machine: _means(studies, machine) for machine in MACHINES},
        "order_of_parts_in_decode": {
            machine: {
                each["model"]: sorted(SHOWN, key=lambda name: -each["times_faster"]["decode"][name])
                for each in studies
                if each["machine"] == machine and each["fraction"] == FRACTIONS[0]
            }
            for machine in MACHINES
        },
        "published": {
            "ablation_qwen2_25": {phase: dict(PAPER[phase]) for phase in PHASES},
            "mean": dict(PAPER_MEAN),
            "order_of_parts_in_decode": list(PAPER_ORDER),
        },
    }


def _means(studies: Sequence[Mapping[str, Any]], machine: str) -> dict[str, dict[str, float]]:
    """Of models and fractions, as the paper's abstract has it."""
    chosen = [each for each in studies if each["machine"] == machine]
    return {
        phase: {
            variant: fmean(each["times_faster"][phase][variant] for each in chosen) for variant in VARIANTS
        }
        for phase in PHASES
    }


def show(result: Mapping[str, Any]) -> None:
    console = Console(width=120)
    console.print(result["label"])
    for machine in MACHINES:
        table = Table(title=machine, title_justify="left")
        for name in ("model", "held", "phase", "baseline ms", *list(VARIANTS)[1:]):
            table.add_column(name, justify="left" if name in ("model", "phase") else "right")
        for each in result["studies"]:
            if each["machine"] != machine:
                continue
            for phase in PHASES:
                ratios = each["times_faster"][phase]
                baseline = each["runs"]["baseline"][phase]["seconds_per_step"]
                cells = [f"{ratio:.2f}" for name, ratio in ratios.items() if name != "baseline"]
                table.add_row(
                    each["model"], f"{each['fraction']:.0%}", phase, f"{baseline * 1e3:.0f}", *cells
                )
        console.print(table)
        means = result["mean_times_faster"][machine]
        console.print(
            "mean: "
            + ", ".join(
                f"{means[phase]['all']:.2f}x {phase} (published {PAPER_MEAN[phase]}x)" for phase in PHASES
            )
        )
        console.print(f"order of parts in decode at 25 %: {result['order_of_parts_in_decode'][machine]}")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of every part by model and fraction; the paper's as diamonds where they are known."""
    with in_style():
        figure, axes = new_figure(2, 2, 7.4)
        for row, machine in enumerate(MACHINES):
            for column, phase in enumerate(("decode", "prefill")):
                _bars(axes[row, column], result, machine, phase)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1.035), ncols=len(labels), fontsize=8
        )
        figure.savefig(path, bbox_inches="tight")


def _bars(axis: Any, result: Mapping[str, Any], machine: str, phase: str) -> None:
    chosen = [each for each in result["studies"] if each["machine"] == machine]
    width = 0.2
    labels, top = [], 1.0
    for place, each in enumerate(chosen):
        left = place + 0.4 * (place // len(FRACTIONS))
        labels.append((left, f"{each['fraction']:.0%}"))
        for number, name in enumerate(SHOWN):
            ratio = each["times_faster"][phase][name]
            top = max(top, ratio, PAPER_MEAN[phase], *PAPER[phase].values())
            where = left + (number - 1.5) * width
            axis.bar(where, ratio, width, color=COLOURS[name], label=name if not place else None)
            published = PAPER[phase].get(name)
            if published and each["model"] == MODELS[0] and each["fraction"] == FRACTIONS[0]:
                first = name == SHOWN[0]
                label = "published (Qwen2, 25 %)" if first else None
                axis.plot(where, published, "D", ms=4.5, color="white", mec=INK, ls="", zorder=4, label=label)
    axis.axhline(1.0, color=SOFT, linewidth=1)
    axis.axhline(PAPER_MEAN[phase], color=GREEN, linewidth=1.2, linestyle="--", label="published mean of all")
    axis.set_xticks([left for left, _ in labels], [label for _, label in labels], fontsize=8)
    for number, name in enumerate(MODELS):
        middle = labels[number * len(FRACTIONS) + 1][0]
        axis.text(
            middle, -0.13, name, transform=axis.get_xaxis_transform(), ha="center", va="top", fontsize=8
        )
    axis.set_ylim(0, 1.12 * top)
    axis.set_ylabel("times faster than a fixed set", fontsize=8)
    kind = "CPU fitted to one time" if machine.endswith("fitted") else "data sheets"
    axis.set_title(f"{phase}, {kind}; simulated", fontsize=9, loc="left")
    axis.grid(visible=False, axis="x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="draw and show an earlier result instead")
    options = parser.parse_args()
    if options.source:
        result = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        result = measure(options.prompt, options.tokens, options.seed, options.processes)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
