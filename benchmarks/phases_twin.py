"""Does the simulator rank the modes as the real engine does? What ``phases.py`` measured, played again in virtual time.

    braid calibrate smollm2 --out MACHINE.json
    python benchmarks/phases_twin.py RESULT.json MACHINE.json [--trace FILE] [--json OUT]

The same requests at the same times, answers as long; turns of programs wait for the answer before. Of each workload and
quantity the modes are compared pair by pair: those that differ by more than 5 % in the engine should differ the same
way in the simulator. ``RESULT.json`` is what ``phases.py --json`` wrote, ``--trace`` what it was given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from common import save, show
from phases_work import STREAM, Client, Size, workloads

from braid.cli.sim.machine import MachineFlags
from braid.cli.sim.phases_run import setup_of
from braid.core.metrics import percentile
from braid.core.request import Slo
from braid.lab.describe.relation import spearman
from braid.sim.phases import run_phases, summary_of
from braid.sim.run import Arrival

STREAM_TOKENS = 900
"""Of a stream that the engine cuts off at the end of the run: longer than any mode takes for the prompts beside it."""
DIFFERENT = 0.05
"""So far apart must two modes be for their order to mean anything."""
QUANTITIES = ("TTFT p50", "TBT p99", "goodput")
BESIDE = ("TTFT p50", "TBT p99")
"""Where streams are cut off, only what happens beside prompts can be compared."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("machine", type=Path)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def arrivals_of(clients: Sequence[Client], seed: int) -> list[Arrival]:
    """What clients ask, with made-up answers of the wished length. Each stands behind the one that it waits for."""
    found: list[Arrival] = []
    for number, client in enumerate(clients):
        ask, before, begin = next(client), (), 0.0
        while True:
            count = STREAM_TOKENS if ask.kind == STREAM else ask.max_tokens
            answer = [(seed + 7919 * (number + 1) + 31 * place) % 40_000 + 1000 for place in range(count)]
            time = begin + ask.delay_s if not before else 0.0
            found.append(
                Arrival(time, list(ask.prompt), count, reply=answer, after=before, delay=ask.delay_s)
            )
            before = (len(found) - 1,)
            try:
                ask = client.send(answer)
            except StopIteration:
                break
    return found


def simulated(
    result: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """By workload and mode."""
    config = result["config"]
    setup = setup_of(MachineFlags(machine=str(options.machine)), None)
    setup = replace(setup, config=replace(setup.config, max_num_seqs=16))
    slo = Slo(config["slo_ttft_ms"] / 1000, config["slo_tbt_ms"] / 1000)
    works = workloads(Size(**config["size"]), 49_152, options.trace, config["seed"])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for work in works:
        for mode in result["workloads"].get(work.name, ()):
            arrivals = arrivals_of(work.clients(0), config["seed"])
            run = run_phases(arrivals, setup, mode, slo)
            summary = summary_of(run)
            tbt = summary["tbt_beside_prompts_ms" if work.name == "long prompts" else "tbt_ms"]
            pairs = zip(run.report.requests, arrivals, strict=True)
            ttft = percentile(
                [times.ttft for times, one in pairs if one.num_output_tokens != STREAM_TOKENS], 50
            )
            quantities = (1000 * ttft, tbt["p99"], summary["goodput"])
            found.setdefault(work.name, {})[mode] = dict(zip(QUANTITIES, quantities, strict=True))
    return found


def measured(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            mode: {
                "TTFT p50": numbers["ttft_ms"]["p50"],
                "TBT p99": numbers["tbt_ms"]["p99"],
                "goodput": numbers["goodput"],
            }
            for mode, numbers in modes.items()
        }
        for name, modes in result["workloads"].items()
    }


def agreement(real: Sequence[float], twin: Sequence[float]) -> tuple[int, int]:
    """Pairs that differ in the engine, and how many of them are ordered alike in the simulator."""
    pairs = alike = 0
    for one, other in combinations(range(len(real)), 2):
        if abs(real[one] - real[other]) <= DIFFERENT * max(real[one], real[other]):
            continue
        pairs += 1
        alike += (real[one] < real[other]) == (twin[one] < twin[other])
    return pairs, alike


def main() -> None:
    options = arguments()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    real, twin = measured(result), simulated(result, options)
    rows, together = [], []
    for name, modes in twin.items():
        for mode, numbers in modes.items():
            row: dict[str, Any] = {"workload": name, "mode": mode}
            for quantity in QUANTITIES:
                row |= {quantity: real[name][mode][quantity], f"{quantity}, sim": numbers[quantity]}
            rows.append(row)
        for quantity in BESIDE if name == "long prompts" else QUANTITIES:
            pair = [[each[mode][quantity] for mode in modes] for each in (real[name], modes)]
            pairs, alike = agreement(*pair)
            together.append(
                {
                    "workload": name,
                    "of": quantity,
                    "pairs": pairs,
                    "ordered alike": alike,
                    "rank correlation": spearman(*(np.unique(each, return_inverse=True)[1] for each in pair)),
                }
            )
    show("engine and simulator: milliseconds, and good requests per second", rows)
    show("do they rank the modes alike?", together)
    save(
        options.json,
        {"machine": result["machine"], "config": result["config"], "rows": rows, "ranks": together},
    )


if __name__ == "__main__":
    main()
