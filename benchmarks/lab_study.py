"""What does it cost to tune on Poisson arrivals? The same requests by the trace's clock and at Poisson times.

Both have the same programs, lengths and mean rate; only the starts differ. Every pair is a stretch of a real trace,
thinned by whole programs to a share of what the machine can do, and played through the production scheduler on the
virtual clock of a calibrated machine. Ratios (trace / Poisson) with 95 % intervals of a bootstrap over the pairs.

    python benchmarks/lab_study.py DATA MACHINE [--serve MODEL --stretch 120 --pairs 4] [--json FILE]

DATA holds ``traces/azure``; MACHINE is what ``braid calibrate`` wrote. ``--serve`` starts the real server too, plays
the same pairs against it in turns (code at the higher load), and shows both halves side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import describe, machine, save, serving, show

from braid.core.metrics import SLO
from braid.lab.measures.measure import Measures, measure
from braid.lab.readers import read_trace
from braid.lab.replay.asking.target import Target
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.replay.record import Run
from braid.lab.replay.run import replay
from braid.lab.replay.simulated import simulate_plan
from braid.lab.scale import thin
from braid.lab.table import Trace, TraceError
from braid.policy.cost import StepCost
from braid.sim.machine import Machine, load_machine

TRACES = {
    "Azure conversation": "traces/azure/AzureLLMInferenceTrace_conv_2023.csv",
    "Azure code": "traces/azure/AzureLLMInferenceTrace_code_2023.csv",
}
STRETCH_S = 300.0
SHARES = (0.3, 0.6)
"""Of the machine's time that the requests need, on average."""
LIMITS = SLO(ttft=10.0, tpot=0.2)
DRAWS = 2000
SERVED = "Azure code"

Player = Callable[[ReplayPlan], Run]
"""Plays a plan: on the virtual clock, or against a server."""


def work(plan: ReplayPlan, cost: StepCost) -> float:
    """Seconds of the machine that a plan needs: prefill in full chunks, decodes eight at a time."""
    chunk = cost.dense.knots[-1]
    seconds = 0.0
    for inputs, outputs in plan.frame.select("in_tok", "out_tok").iter_rows():
        step = cost.dense.at(chunk).seconds + cost.prefill.at(chunk, inputs / 2).seconds
        seconds += inputs / chunk * step
        seconds += outputs * (cost.dense.at(8).seconds + cost.decode.at(8, inputs).seconds) / 8
    return seconds


def share_to_keep(trace: Trace, options: PlanOptions, machine: Machine, share: float) -> float:
    """How much of the whole trace loads the machine to ``share``."""
    plan = build_plan(trace, replace(options, start_s=0.0, span_s=None))
    return min(1.0, share * trace.span_s / work(plan, machine.cost))


def plans(trace: Trace, options: PlanOptions, seed: int) -> tuple[ReplayPlan, ReplayPlan] | None:
    """The stretch by its clock, and its requests at Poisson times of the same mean rate; None for a quiet stretch."""
    try:
        plan = build_plan(trace, options)
    except TraceError:
        return None
    if plan.num_requests < 10:
        return None
    assert options.span_s is not None
    rate = plan.num_requests / options.span_s
    return plan, build_plan(trace, replace(options, arrivals="rate", rate=rate, seed=seed))


def figures(found: Measures) -> dict[str, float]:
    ttft = found.latency["ttft"]
    jct = found.latency["jct"]
    assert ttft is not None
    assert jct is not None
    return {
        "TTFT p50": ttft.p50,
        "TTFT p99": ttft.p99,
        "JCT mean": jct.mean,
        "SLO attainment": found.goodput.attainment or 0.0,
    }


def ratio(pairs: Sequence[tuple[float, float]], rng: np.random.Generator) -> tuple[float, float, float]:
    """Of the means, with the interval of a bootstrap over pairs."""
    values = np.array(pairs)
    drawn = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    means = values.mean(axis=0)
    return float(means[0] / means[1]), float(low), float(high)


def study(
    name: str,
    trace: Trace,
    sim: Machine,
    share: float,
    stretch: float,
    limit: int,
    players: dict[str, Player],
) -> list[dict[str, Any]]:
    """Every player plays every pair; at most ``limit`` pairs, spread over the trace."""
    options = PlanOptions(max_tokens=sim.config.max_model_len)
    thinned = thin(trace, share_to_keep(trace, options, sim, share), seed=1)
    made = [
        plans(thinned, replace(options, start_s=number * stretch, span_s=stretch), seed=number)
        for number in range(int(trace.span_s // stretch))
    ]
    pairs = [pair for pair in made if pair is not None]
    pairs = pairs[:: max(1, -(-len(pairs) // limit))]
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {player: [] for player in players}
    for number, pair in enumerate(pairs):
        for player, play in players.items():
            order = (0, 1) if number % 2 else (1, 0)  # neither always comes first
            measured = {which: figures(measure(play(pair[which]), LIMITS)) for which in order}
            found[player].append((measured[0], measured[1]))
            print(f"{name}, {share}, {player}: {len(found[player])} of {len(pairs)} pairs", file=sys.stderr)
    rng = np.random.default_rng(0)
    return [
        {
            "trace": name,
            "load": share,
            "played by": player,
            "pairs": len(played),
            "figure": figure,
            "by the trace": float(np.mean([a[figure] for a, _ in played])),
            "Poisson": float(np.mean([b[figure] for _, b in played])),
            **interval([(a[figure], b[figure]) for a, b in played], rng),
        }
        for player, played in found.items()
        for figure in played[0][0]
    ]


def interval(pairs: Sequence[tuple[float, float]], rng: np.random.Generator) -> dict[str, Any]:
    value, low, high = ratio(pairs, rng)
    return {"ratio": value, "95 %": f"{low:.2f} .. {high:.2f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("machine", type=Path)
    parser.add_argument("--serve", metavar="MODEL")
    parser.add_argument("--stretch", type=float, default=STRETCH_S, help="seconds of the trace in a pair")
    parser.add_argument("--pairs", type=int, default=1000, help="at most so many pairs of a trace and a load")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    described = machine()
    sim = load_machine(options.machine)
    print(describe(described))
    print(f"simulated: {sim.words}")
    players: dict[str, Player] = {"simulator": lambda plan: simulate_plan(plan, sim)}
    todo = [(name, share) for name in TRACES for share in SHARES]
    if options.serve is not None:
        todo = [(SERVED, SHARES[-1])]
    rows: list[dict[str, Any]] = []
    with serving(options.serve) if options.serve is not None else nullcontext() as url:
        if url is not None:
            players["server"] = lambda plan: replay(plan, Target(url=url))
        for name, share in todo:
            trace = read_trace(options.data / TRACES[name])
            rows += study(name, trace, sim, share, options.stretch, options.pairs, players)
    show("arrivals by the trace beside Poisson at the same mean rate", rows)
    save(options.json, {"machine": described, "simulated": sim.words, "limits": str(LIMITS), "rows": rows})


if __name__ == "__main__":
    main()
