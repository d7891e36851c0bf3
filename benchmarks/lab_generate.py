"""How fast the lab writes synthetic requests to parquet: independent ones, and programs of several turns.

    python benchmarks/lab_generate.py [--requests N] [--out FILE]

The profiles are fitted here to made-up traffic, so the script needs no data. Goals on two cores: a million independent
requests per second, a hundred thousand with programs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import describe, machine, save, show
from braid.lab.fit.profile import Profile
from braid.lab.fit.trace import fit_trace
from braid.lab.generate import Plan, write
from braid.lab.table import Trace, TraceInfo, conform


def singles() -> Profile:
    rng = np.random.default_rng(0)
    num = 20_000
    inputs = rng.lognormal(6.0, 1.2, num).astype(int) + 1
    outputs = rng.lognormal(4.5, 1.0, num).astype(int) + 1
    times = np.cumsum(rng.gamma(0.5, 2.0, num) / 5)
    frame = pl.DataFrame({"t_s": times, "in_tok": inputs, "out_tok": outputs})
    return fit_trace(Trace(conform(frame), TraceInfo()), candidates=("gamma",), laws=False)


def programs() -> Profile:
    rng = np.random.default_rng(1)
    counts = rng.geometric(0.1, 2000)
    program = np.repeat(np.arange(2000), counts)
    turn = np.concatenate([np.arange(n) for n in counts])
    frame = pl.DataFrame(
        {
            "t_s": np.repeat(np.cumsum(rng.exponential(1.0, 2000)), counts) + 10.0 * turn,
            "turn": turn,
            "program_id": [f"p{p}" for p in program],
            "gap_before_s": rng.lognormal(1.0, 1.0, program.size),
            "e2e_s": rng.uniform(1, 5, program.size),
            "in_tok": 1000 + 300 * turn,
            "out_tok": rng.integers(1, 500, program.size),
        }
    )
    return fit_trace(Trace(conform(frame), TraceInfo()), candidates=("poisson",), laws=False)


def rate(profile: Profile, requests: int, path: Path) -> float:
    assert profile.rate is not None
    start = time.perf_counter()
    rows = write(profile, Plan(span_s=requests / profile.rate), path)
    return rows / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine()
    print(describe(here))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make, goal in (("independent", singles, 1_000_000), ("programs", programs, 100_000)):
            profile = make()
            best = max(rate(profile, options.requests, Path(folder) / "t.parquet") for _ in range(3))
            rows.append({"requests": name, "per second": best, "goal": goal, "met": best >= goal})
    show(f"written to parquet, {options.requests:,} requests, best of 3", rows)
    save(options.out, {"machine": here, "rows": rows})


if __name__ == "__main__":
    main()
