"""CSV to parquet: seconds and peak memory of ``braid trace load``, as whole processes.

Run: python benchmarks/lab_load.py [TRACE] [--rounds 3]. Without a trace, a twin of BurstGPT_3 is made (240 MB).
Targets for that one: 10 s, 3 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
from common import describe, machine, save, show

CODE = "import sys; from braid.cli import main; sys.exit(main())"
TWIN = Path(__file__).with_name("lab_twin.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = args.trace or made(Path(folder))
        rounds = [measure(trace, Path(folder) / "out.parquet") for _ in range(args.rounds)]
        out = Path(folder) / "out.parquet"
        size = {
            "rows": pl.scan_parquet(out).select(pl.len()).collect().item(),
            "parquet_bytes": out.stat().st_size,
        }
        size["input_bytes"] = trace.stat().st_size
    rows = [
        {"figure": name, "median": statistics.median(values), "rounds": values}
        for name, values in ((name, [row[name] for row in rounds]) for name in rounds[0])
    ]
    result: dict[str, Any] = {"machine": machine(), "input": size, "load": rows}
    print(describe(result["machine"]))
    show(f"{size['rows']:,} rows, {size['input_bytes'] / 1e6:.0f} MB, {args.rounds} rounds", rows)
    save(args.json, result)


def made(folder: Path) -> Path:
    """The twin, in a process of its own, so that this one stays small."""
    path = folder / "twin.csv"
    subprocess.run([sys.executable, str(TWIN), str(path)], check=True)
    return path


def measure(trace: Path, out: Path) -> dict[str, float]:
    """One load, start of the interpreter included."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, "trace", "load", str(trace), "--out", str(out)],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"braid trace load ended with {child.returncode}")
    return {
        "wall, s": time.perf_counter() - begin,
        "processor, s": usage.ru_utime + usage.ru_stime,
        "peak memory, GB": usage.ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    main()
