"""Is what the lab generates like the traffic it was fitted to? Proof on held-out time of real traces.

    python benchmarks/lab_fidelity.py DATA [--out FILE]

DATA holds ``traces/azure``, ``traces/mooncake`` and ``agents``. Arrivals and lengths are fitted on every second block
of three minutes and judged on the others; with --halves also on chronological halves, where the trace's own drift sets
the floor. Agents without a common clock are split by session. Generated: ``RUNS`` times the real span, with the chosen
arrivals, and with Poisson and one Gamma law.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from braid.lab.compare import Part, Row, compare
from braid.lab.fit.observed import Spans, alternate, dequantise, halves
from braid.lab.fit.profile import Profile
from braid.lab.fit.trace import fit_trace
from braid.lab.generate import Plan, generate_trace
from braid.lab.readers import read_trace
from braid.lab.scale import thin
from braid.lab.table import Trace

BLOCK_S = 180.0
RUNS = 24
TRACES = {
    "Azure conversation": ("traces/azure/AzureLLMInferenceTrace_conv_2023.csv", 0.25),
    "Azure code": ("traces/azure/AzureLLMInferenceTrace_code_2023.csv", 0.40),
    "Mooncake conversation": ("traces/mooncake/conversation_trace.jsonl", 0.25),
}
AGENTS = "agents/weka_requests.csv.gz"


def spans_of(trace: Trace) -> Spans:
    times = trace.frame["t_s"]
    return ((float(times.min()), float(times.max()) + max(trace.info.t_quantum_s, 1e-3)),)  # type: ignore[arg-type]


def judged(trace: Trace, train: Spans, held: Spans, slack: float) -> tuple[Profile, dict[str, list[Row]]]:
    """Rows per kind of arrivals; every run is as long as the trace."""
    profile = fit_trace(trace, spans=train, laws=False)
    rows = {}
    for which in ("chosen", "poisson", "gamma"):
        plan = Plan(seed=7, span_s=trace.span_s * RUNS, arrivals=which)  # type: ignore[arg-type]
        made = generate_trace(profile, plan)
        parts = Part(trace=trace, spans=held), Part(trace=made), Part(trace=trace, spans=train)
        rows[which] = compare(*parts, idc_slack=slack)
    return profile, rows


def dequantised(trace: Trace) -> float:
    """How far the index at 60 s moves when a coarse clock's ticks are spread inside their quantum."""
    from braid.lab.distance import idc

    times = np.sort(trace.frame["t_s"].to_numpy())
    moved = np.sort(dequantise(times, trace.info.t_quantum_s, np.random.default_rng(0)))
    return idc(moved, 60.0) / idc(times, 60.0)


def agents(data: Path) -> dict[str, list[Row]]:
    """Half of the sessions against the other half; arrivals are not in the source, so lengths, turns and gaps."""
    whole = read_trace(data / AGENTS)
    known = thin(whole, 0.5, seed=1)
    ids = known.frame["program_id"].unique()
    held = Trace(whole.frame.filter(~pl.col("program_id").is_in(ids.implode())), whole.info)
    profile = fit_trace(known, laws=False)
    made = generate_trace(profile, Plan(seed=7, span_s=3600.0, rate=50.0))
    return {"chosen": compare(Part(trace=held), Part(trace=made), Part(trace=known))}


def show(title: str, rows: dict[str, list[Row]]) -> None:
    table = Table("statistic", "real to real", "bound", *rows, title=title, title_justify="left")
    for i, row in enumerate(rows["chosen"]):
        bound = f"1 +- {row.bound:.2f}" if row.name.startswith("IDC") else f"<= {row.bound:.3f}"
        cells = []
        for each in rows.values():
            verdict = "" if not each[i].judged else " pass" if each[i].passed else " FAIL"
            cells.append(f"{each[i].value:.3f} ({each[i].low:.2f}..{each[i].high:.2f}){verdict}")
        table.add_row(row.name, "-" if row.floor is None else f"{row.floor:.3f}", bound, *cells)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--halves", action="store_true", help="the chronological halves, too")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (path, slack) in TRACES.items():
        trace = read_trace(options.data / path)
        spans = spans_of(trace)
        splits = {"alternating 3 min": [alternate(spans, BLOCK_S, part) for part in (0, 1)]}
        if options.halves:
            splits["first half, second half"] = [halves(spans, part) for part in (0, 1)]
        for split, (train, held) in splits.items():
            start = time.perf_counter()
            profile, rows = judged(trace, train, held, slack)
            assert profile.requests is not None
            assert profile.requests.arrivals is not None
            chosen = profile.requests.arrivals.chosen.name
            show(f"{name}, {split}: {chosen} ({time.perf_counter() - start:.0f} s)", rows)
            kept = {kind: [row._asdict() for row in each] for kind, each in rows.items()}
            results[f"{name}, {split}"] = {"chosen": chosen, **kept}
        if trace.info.t_quantum_s:
            print(f"IDC(60 s) de-quantised to ticks: {dequantised(trace):.3f}")
    rows = agents(options.data)
    show("Weka agents, half of the sessions held out", rows)
    results["Weka agents"] = {"chosen": [row._asdict() for row in rows["chosen"]]}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
