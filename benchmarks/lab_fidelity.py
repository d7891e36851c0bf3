"""Is what the lab generates like the traffic it was fitted to? Proof on held-out data of real traces.

    python -m benchmarks.lab_fidelity DATA [--halves] [--out FILE]

DATA holds ``traces/azure``, ``traces/mooncake`` and ``agents``. A trace is split into alternating blocks of three
minutes (with --halves also into chronological halves, where its own drift sets the floor); agents without a common
clock are split by session. A profile is fitted to one part and judged on the other, then the other way round.
Distances (KS) must not exceed those of the two real parts by more than the slack, either way. The index of
dispersion is judged on the geometric mean of both ways: the index of one part at 60 s rests on thirty windows, and
what one part has too much the other has too little. Either way's own ratios, beside those of the real parts, are in
FILE.

Generated: up to 24 times the real span, with the chosen arrivals, and with Poisson and one Gamma law.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import describe, machine, save
from braid.cli.trace.lab_tables import show_proof
from braid.lab.compare import Part, passed
from braid.lab.distance import idc
from braid.lab.fidelity import Proof, both_ways, prove
from braid.lab.fit.observed import dequantise
from braid.lab.fit.trace import fit_trace
from braid.lab.readers import read_trace
from braid.lab.split import spans_of, split_blocks, split_programs, split_time
from braid.lab.table import Trace

BLOCK_S = 180.0
TRACES = {
    "Azure conversation": ("traces/azure/AzureLLMInferenceTrace_conv_2023.csv", 0.25),
    "Azure code": ("traces/azure/AzureLLMInferenceTrace_code_2023.csv", 0.40),
    "Mooncake conversation": ("traces/mooncake/conversation_trace.jsonl", 0.25),
}
AGENTS = "agents/weka_requests.csv.gz"
AGENT_SEEDS = (0, 1, 2, 3)

Split = Callable[[Trace], tuple[Trace, Trace]]


def judge(title: str, parts: tuple[Trace, Trace], slack: float) -> dict[str, Any]:
    """Both ways, shown and as JSON."""
    start, proofs, chosen = time.perf_counter(), [], []
    for train, held in (parts, parts[::-1]):
        profile = fit_trace(train, laws=False)
        proofs.append(prove(profile, Part(trace=held), Part(trace=train), idc_slack=slack))
        chosen += [stream.arrivals.chosen.name for stream in profile.streams if stream.arrivals]
    merged = both_ways(proofs[0], proofs[1], slack)
    verdict = "pass" if passed(list(merged["chosen"])) else "FAIL"
    names = f", arrivals {' / '.join(chosen)}" if chosen else ""
    show_proof(merged, f"{title}{names}: {verdict} ({time.perf_counter() - start:.0f} s)")
    return {"chosen": chosen, "passed": verdict == "pass", "both ways": _plain(merged),
            "each way": [_plain(proof) for proof in proofs]}  # fmt: skip


def _plain(proof: Proof) -> dict[str, Any]:
    return {kind: [row._asdict() for row in rows] for kind, rows in proof.items()}


def middle(trace: Trace) -> tuple[Trace, Trace]:
    spans = spans_of(trace)
    return split_time(trace, (spans[0][0] + spans[-1][1]) / 2)


def dequantised(trace: Trace) -> float:
    """How far the index at 60 s moves when a coarse clock's ticks are spread inside their quantum."""
    times = np.sort(trace.frame["t_s"].to_numpy())
    moved = np.sort(dequantise(times, trace.info.t_quantum_s, np.random.default_rng(0)))
    return idc(moved, 60.0) / idc(times, 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--halves", action="store_true", help="the chronological halves, too")
    options = parser.parse_args()
    here = machine()
    print(describe(here))
    results: dict[str, Any] = {}
    splits: dict[str, Split] = {"alternating 3 min": lambda trace: split_blocks(trace, BLOCK_S)}
    if options.halves:
        splits["chronological halves"] = middle
    for name, (path, slack) in TRACES.items():
        trace = read_trace(options.data / path)
        for split, cut in splits.items():
            results[f"{name}, {split}"] = judge(f"{name}, {split}", cut(trace), slack)
        if trace.info.t_quantum_s:
            results[f"{name}, index at 60 s of de-quantised time to ticks"] = dequantised(trace)
            print(f"{name}: IDC(60 s) de-quantised to ticks: {dequantised(trace):.3f}")
    agents = read_trace(options.data / AGENTS)
    for seed in AGENT_SEEDS:
        title = f"Weka agents, half of the sessions, seed {seed}"
        results[title] = judge(title, split_programs(agents, 0.5, seed), 0.25)
    save(options.out, {"machine": here, "results": results})


if __name__ == "__main__":
    main()
