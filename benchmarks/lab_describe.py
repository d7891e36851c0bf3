"""How long the lab takes to describe a trace of the size of BurstGPT_3, with all figures, and in how much memory.

    python benchmarks/lab_describe.py [--rows 5344021] [--trace FILE.parquet] [--out DIR]

Without ``--trace`` a synthetic one is made first (110 days, two models, two kinds, conversations, 7 % failures), which
is not timed. Then a fresh process reads the parquet file, describes it, draws every figure (with a second process, as
``braid trace describe`` does) and writes the page: wall time, CPU time and peak memory of both together are what is
printed, with the parts. Target on 2 cores: 10 s, 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 5_344_021
DAYS = 110


def make(path: Path, rows: int, seed: int = 0) -> None:
    """A synthetic trace with the columns, mix and rhythm of BurstGPT_3; whole seconds, bursts, quiet days."""
    import numpy as np
    import polars as pl

    from braid.lab.table import Trace, TraceInfo, conform, save

    rng = np.random.default_rng(seed)
    hours = DAYS * 24
    rhythm = 1 + 0.9 * np.sin((np.arange(hours) % 24 - 8) / 24 * 2 * np.pi)
    load = rhythm * np.repeat(rng.lognormal(0, 1, DAYS), 24) * rng.gamma(0.5, 2, hours)
    hour = np.sort(rng.choice(hours, rows, p=load / load.sum()))
    times = np.floor(np.sort(hour * 3600 + rng.uniform(0, 3600, rows)))
    conv = rng.random(rows) < 0.047
    failed = rng.random(rows) < np.where(conv, 0.008, 0.076)
    program = rng.integers(0, max(int(conv.sum() / 4.18), 1), rows)
    frame = pl.DataFrame(
        {
            "t_s": times,
            "model": np.where(rng.random(rows) < 0.15, "GPT-4", "ChatGPT"),
            "kind": np.where(conv, "conv", "api"),
            "program_id": pl.Series(np.char.add("s", program.astype(str))).set(pl.Series(~conv), None),
            "in_tok": rng.lognormal(5.8, 0.9, rows).astype(np.int64) + 1,
            "out_tok": np.where(
                failed, 0, rng.lognormal(np.where(rng.random(rows) < 0.5, 2.5, 5.5), 0.6)
            ).astype(int),
            "status": np.where(failed, "failed", "ok"),
            "e2e_s": rng.lognormal(1, 1, rows),
            "gap_before_s": pl.Series(rng.lognormal(4.9, 1.9, rows)).set(pl.Series(~conv), None),
        }
    )
    save(Trace(conform(frame), TraceInfo(source="synthetic", format="made", t_quantum_s=1.0)), path)


def measure(trace: Path, out: Path) -> None:
    """Describe and draw in this process; one JSON line."""
    began = time.perf_counter()
    from braid.cli.trace.describe import write_folder
    from braid.lab.describe.description import describe
    from braid.lab.figures.process import DrawingProcess
    from braid.lab.table import load

    imported = time.perf_counter()
    loaded = load(trace)
    read = time.perf_counter()
    with DrawingProcess() as beside:
        description = describe(loaded)
        described = time.perf_counter()
        write_folder(description, out, beside=beside)
    drawn = time.perf_counter()
    # The second process begins as a copy of this one, and its peak counts that: the sum is more than was ever used.
    own, child = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    parts = {
        "rows": description.rows,
        "import_s": imported - began,
        "read_s": read - imported,
        "describe_s": described - read,
        "draw_s": drawn - described,
        "total_s": drawn - began,
        "cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in (own, child)),
        "peak_rss_gb": (own.ru_maxrss + child.ru_maxrss) / 1e6,
    }
    print(json.dumps({name: round(value, 3) for name, value in parts.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.trace, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        trace = options.trace or Path(folder) / "trace.parquet"
        if options.trace is None:
            make(trace, options.rows)
        command = [
            sys.executable,
            __file__,
            "--measure",
            "--trace",
            trace,
            "--out",
            options.out or Path(folder) / "out",
        ]
        result = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load average {load}")
    print(result.stdout.strip())


if __name__ == "__main__":
    main()
