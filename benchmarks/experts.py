"""A mixture of experts larger than memory: who serves it fastest from a disk under the same budget of memory?

Expert layers alone: no attention, no head. The real store, kernels and disk compute random int4 experts in the shape of
Qwen3-30B-A3B (some or all of its layers) for recorded routing, weights included; activations are random, and a router
of the true size is asked for its cost. What is printed per token is therefore the experts' part of it.

    python benchmarks/experts.py --routes qwen3-30b-a3b.route.csv --folder DIR [--layers 48] [--json F] [--figure F.png]
    python benchmarks/experts.py --routes qwen3-30b-a3b.route.csv --folder DIR --quick

Contenders (``--contenders``), each run in a process of its own, its memory limited to the budget (a part of all
experts' bytes) plus what a process without experts holds:

    mmap         records are mapped, the page cache is the cache
    mmap-ahead   the same with MADV_WILLNEED for all experts of a layer, and MADV_RANDOM
    lru-serial   the store with plain LRU, all reads of a layer finished before anything is computed
    static       the experts used most over these programs' whole loop stay (known in hindsight), all others bypass
    ours         the store as a server has it
    ours+oracle  the same, and reads ahead what an oracle of the published precision (88.6 %) foretells
    no-cache     no slots at all, in loads of prompts: what a cache must not be slower than
    resident     all experts in memory, where they fit: the floor

and on request lru (with overlap), static-learnt (used most in the first 64 steps), ours-serial (without overlap) and
ours+oracle-auto (reads ahead only while that pays).
Belady's replay is the bound of hits. Loads (``--loads``): see ``experts_work.py``. Where ``--json`` exists already
and was made with the same settings, what it lacks is run and the rest kept, so ``--minutes`` may cut a long run into
pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import torch
from big_moe import Shape, random_record
from common import describe, machine, save, show
from experts_cage import KINDS, Cage, available, open_cage, swap_bytes
from experts_disk import forget, rates
from experts_figure import draw
from experts_work import (
    FLOOR,
    ORDER,
    Load,
    Recording,
    belady,
    differing,
    prompts_of,
    recording_of,
    rotated,
    rows_of,
    slots_for,
    work_of,
    written,
)

import braid.kernels as ops
from braid.checkpoint.expert_file import EXPERT_FILE, ExpertFile, ExpertWriter, open_experts
from braid.cli.progress import ConsoleProgress
from braid.core.env import engine_environment
from braid.core.errors import CheckpointError
from braid.sim.experts.routes import read_routes

LABEL = "expert layers alone: no attention, no head; random weights, recorded routing"
NO_CACHE, PROBE = "no-cache", "probe"
CONTENDERS = ("mmap", "mmap-ahead", "lru-serial", "static", "ours", "ours+oracle", NO_CACHE, FLOOR)
LOADS = ("a1", "b4", "c4", "b8", "c8", "p3")
QUICK = Shape(layers=6, hidden=1024, expert_size=384)
QUICK_LOADS = ("c4", "p2")
SLACK = 16 * 2**20
"""Beside what a process without experts holds: page tables, buffers of the system. All that the page cache may add."""
DISK_BYTES = 40 * 2**20
ONCE = 100
"""Per cent: the budget of who has everything in memory."""


COLUMNS = {
    "contender": "contender",
    "budget %": "%",
    "ms/token": "ms",
    "range": "range",
    "compute": "comp",
    "stall %": "stall",
    "planning %": "plan",
    "MB/token": "MB",
    "tokens/GB": "tok/GB",
    "roofline": "roof",
    "link GB/s": "GB/s",
    "x mmap": "x mmap",
    "x serial": "x lru",
    "x static": "x stat",
    "hit %": "hit",
}
"""Of rows, as tables call them; ``stall``, ``plan`` and ``hit`` are per cent there."""


class Run(NamedTuple):
    repeat: int
    load: str
    budget: int
    contender: str

    def is_in(self, runs: Sequence[Mapping[str, Any]]) -> bool:
        return any(all(run[name] == value for name, value in self._asdict().items()) for run in runs)


def expert_file(folder: Path, shape: Shape, seed: int) -> ExpertFile:
    """The one in the folder that fits, also that of a model made by ``big_moe.py``; else a new one."""
    source = f"random numbers, seed {seed}"
    own = folder / f"experts-{shape.layers}x{shape.hidden}x{shape.expert_size}.braid"
    for path in (own, folder / EXPERT_FILE):
        if path.exists():
            try:
                file = open_experts(path)
            except CheckpointError as error:
                print(f"not used: {error}", file=sys.stderr)
                continue
            if (file.shape, file.layout, file.source) == (shape.routed, shape.layout, source):
                return file
    progress = ConsoleProgress()
    with ExpertWriter(own, shape.routed, shape.layout, source=source, is_random=True) as writer:
        progress.start(writer.size_bytes, f"Making {own}")
        try:
            for expert in range(shape.routed.total):
                writer.write(expert, random_record(shape.layout, (seed, 0, expert)))
                progress.advance(shape.layout.record_bytes)
        finally:
            progress.done()
        return writer.commit()


def runs_of(options: argparse.Namespace, fits: bool) -> Iterator[Run]:
    """All runs, repeat by repeat, contenders in another order each time."""
    for repeat in range(options.repeats):
        for load in options.loads:
            for turn, budget in enumerate(options.budgets):
                for name in rotated(options.contenders, repeat + turn):
                    if name == NO_CACHE and load[0] != "p":
                        continue
                    if name == FLOOR and (turn > 0 or not fits):
                        continue
                    yield Run(repeat, load, ONCE if name == FLOOR else budget, name)


class Bench:
    """What all runs share."""

    def __init__(self, options: argparse.Namespace, file: ExpertFile, recording: Path) -> None:
        self._options, self._file, self._recording = options, file, recording
        self._expert_bytes = file.shape.total * file.layout.record_bytes
        self.allowance = 0
        self._seed = options.seed

    def spec(self, run: Run) -> dict[str, Any]:
        options = self._options
        warm_up, steps = decodes(Load(run.load), options)
        return {
            "path": str(self._file.path.resolve()),
            "recording": str(self._recording),
            "load": run.load,
            "contender": run.contender,
            "budget_bytes": self._expert_bytes * run.budget // 100,
            "warm_up": warm_up,
            "steps": steps,
            "threads": options.threads,
            "seed": options.seed,
            "seconds": options.seconds,
        }

    def probe(self) -> None:
        """What a process holds that computes with no expert in memory but those in staging rows."""
        found = self._child(Run(0, self._options.loads[0], 0, PROBE), None)
        self.allowance = int(found["own_bytes"]) + SLACK

    def run(self, run: Run) -> dict[str, Any]:
        """One child, from a cold page cache, with the disk's rates before and after it."""
        measure = partial(rates, self._file, num_bytes=DISK_BYTES)
        self._seed += 2
        forget(self._file)
        before, load_average = measure(self._seed), os.getloadavg()
        limit = self._expert_bytes * run.budget // 100 + self.allowance
        found = self._child(run, limit)
        return (
            run._asdict()
            | found
            | {
                "limit_bytes": limit,
                "load_average": load_average,
                "disk": [before, measure(self._seed + 1)],
            }
        )

    def _child(self, run: Run, limit: int | None) -> dict[str, Any]:
        with closing(open_cage(self._options.cage if limit is not None else "none")) as cage:
            process = self._start(run, cage)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                ready = process.stdout.readline()
                if ready and limit is not None:
                    cage.limit(limit)
                    process.stdin.write("go\n")
                said, _ = process.communicate("" if limit is not None else "go\n")
            finally:
                process.kill()
                process.wait()
            told = {"cage": cage.kind, "cage_peak_bytes": cage.peak(), "page_cache_bytes": cage.page_cache()}
        if process.returncode == 0:
            return {**json.loads(said), **told}
        if process.returncode == -9 and limit is not None:
            return {"failed": "killed at the limit of its memory", **told}
        raise SystemExit(f"{run} failed with code {process.returncode}")

    def _start(self, run: Run, cage: Cage) -> subprocess.Popen[str]:
        """Through a shell, which enters the cage first: all that the child holds is counted."""
        words = [sys.executable, str(Path(__file__).with_name("experts_run.py")), json.dumps(self.spec(run))]
        if cage.entrance is not None:
            words = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cage.entrance), *words]
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=engine_environment()
        )


def decodes(load: Load, options: argparse.Namespace) -> tuple[int, int]:
    """Steps before it counts, and while it does. One program alone goes round its loop once first."""
    warm_up = options.warm_up if load.programs > 1 or options.quick else max(options.warm_up, 128)
    return warm_up, max(8, options.steps // load.programs)


def bounds(
    options: argparse.Namespace, file: ExpertFile, recording: Recording, runs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Belady's hits for every load and budget, of runs that are kept too: no time, and no policy can have more."""
    shape, found = file.shape, []
    budgets = {name: set(options.budgets) for name in options.loads}
    for run in runs:
        budgets.setdefault(run["load"], set()).add(run["budget"])
    for name in budgets:
        load = Load(name)
        warm_up, steps = decodes(load, options)
        work = work_of(load, recording, shape.per_layer, warm_up=warm_up, steps=steps, seed=options.seed)
        tokens = sum(len(step.rows[0]) for step in work.measured)
        for budget in sorted(budgets[name] - {100}):
            num_bytes = shape.total * file.layout.record_bytes * budget // 100
            counts = belady(work, shape, slots_for(num_bytes, file.layout.record_bytes, 0))
            found.append(
                {
                    "load": name,
                    "what": load.label,
                    "budget %": budget,
                    "experts/token": counts.wanted / tokens,
                    "hit %": 100 * counts.hit_rate,
                    "MB/token": (counts.wanted - counts.hits) * file.layout.record_bytes / tokens / 1e6,
                }
            )
    return found


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    runs = result["runs"]
    return {
        "rows": rows_of(runs),
        "prompts": prompts_of(runs),
        "differing": differing(runs),
    }


def report(result: Mapping[str, Any]) -> None:
    file = result["file"]
    print(
        f"{describe(result['machine'])}\n{result['kernels']}, {result['settings']['threads']} threads\n{LABEL}"
    )
    print(
        f"{file['shape']['layers']} layers of {file['shape']['per_layer']} int4 experts of "
        f"{file['record_bytes'] / 1e6:.2f} MB, {file['experts_bytes'] / 1e9:.2f} GB; k = {result['top_k']} as recorded"
    )
    kinds = sorted({run["cage"] for run in result["runs"]})
    direct = all(
        run.get("is_direct", True) for run in result["runs"] if not run["contender"].startswith("mmap")
    )
    print(
        f"memory held to the budget by: {', '.join(kinds)}; beside it {result['allowance_bytes'] / 2**20:.0f} MiB "
        f"for each; swap {result['swap_bytes'] / 2**30:.1f} GiB; O_DIRECT: {'yes' if direct else 'refused'}; "
        f"the disk reads {result['read_ahead_bytes'] or 0:,} bytes around a fault"
    )
    disks = [rates for run in result["runs"] for rates in run["disk"]]
    print(
        "disk, random records, GB/s (lowest, median, highest of all measurements): "
        + "; ".join(f"depth {depth}: {_spread([rates[depth] for rates in disks])}" for depth in disks[0])
    )
    show("Belady's replay, the bound of hits", result["belady"])
    for load in dict.fromkeys(row["load"] for row in result["rows"]):
        rows = [
            {word: row[name] for name, word in COLUMNS.items()}
            for row in map(_ranged, result["rows"])
            if row["load"] == load
        ]
        show(f"{load}: {Load(load).label}. Per token: ms, MB; stall, plan, hit in %; medians", rows)
    if result["prompts"]:
        show("ms per prompt", result["prompts"])
    words = (
        f"DIFFERENT RESULTS in {result['differing']}" if result["differing"] else "same results, bit by bit"
    )
    print(f"all contenders: {words}")
    for run in result["runs"]:
        if "failed" in run:
            print(f"{run['load']} {run['budget']} % {run['contender']}: {run['failed']}")


def _ranged(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "range": f"{row['low']:.3g}-{row['high']:.3g}" if row["runs"] > 1 else "-"}


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value / 1e9:.2f}" for value in (min(values), median(values), max(values)))


def read_ahead_bytes(path: Path) -> int | None:
    """What the disk below a file reads around a page that is missing in mapped memory; None where it is not told."""
    number = path.stat().st_dev
    try:
        words = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb").read_text()
    except OSError:
        return None
    return int(words) * 1024


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What makes runs comparable; those of other settings do not go into the same result."""
    names = ("layers", "steps", "warm_up", "seconds", "threads", "seed", "quick", "cage")
    return {name: getattr(options, name) for name in names} | {"routes": options.routes.name}


def kept_runs(path: Path | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of an earlier call.

    Raises:
        SystemExit: its settings were others.
    """
    if path is None or not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["settings"] != settings:
        raise SystemExit(f"{path} has other settings: {before['settings']}")
    runs: list[dict[str, Any]] = before["runs"]
    return runs


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--routes", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the expert file is kept")
    parser.add_argument("--layers", type=int, help="of the 48 (default 16: 5 GB)")
    parser.add_argument("--budgets", type=int, nargs="+", help="per cent of all experts' bytes")
    parser.add_argument("--loads", nargs="+", help=f"default {' '.join(LOADS)}")
    parser.add_argument("--contenders", nargs="+", choices=ORDER, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int)
    parser.add_argument(
        "--steps", type=int, help="decode steps that count, divided by the programs (default 64)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=8, help="decode steps before; one program: a whole loop"
    )
    parser.add_argument(
        "--seconds", type=float, help="of a loop's steps, before and while it counts (default 20)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cage", choices=KINDS, default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="begin no run after so many; the same command goes on")
    parser.add_argument("--quick", action="store_true", help="six small layers, one repeat")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    quick = options.quick
    options.layers = options.layers or (QUICK.layers if quick else 16)
    options.budgets = sorted(options.budgets or ([25] if quick else [25, 50, 75]))
    options.loads = options.loads or list(QUICK_LOADS if quick else LOADS)
    options.repeats = options.repeats or (1 if quick else 3)
    options.steps = options.steps or 64
    options.seconds = options.seconds or (3.0 if quick else 20.0)
    for name in options.loads:
        try:
            Load(name)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    return options


def main() -> None:
    options = parsed()
    runs = kept_runs(options.json, settings_of(options))
    small = {"hidden": QUICK.hidden, "expert_size": QUICK.expert_size} if options.quick else {}
    file = expert_file(options.folder, Shape(layers=options.layers, **small), options.seed)
    routes = read_routes(options.routes)
    recording = recording_of(routes, options.layers)
    with NamedTemporaryFile("w", suffix=".json") as kept:
        kept.write(written(recording))
        kept.flush()
        bench = Bench(options, file, Path(kept.name))
        bench.probe()
        loads = dict.fromkeys([*(run["load"] for run in runs), *options.loads])
        result = head_of(options, file, bench.allowance) | {
            "loads": {name: Load(name).label for name in loads},
            "top_k": routes.shape.top_k,
            "belady": bounds(options, file, recording, runs),
            "runs": runs,
        }
        measure(options, bench, result)
    if not runs:
        raise SystemExit("nothing was run")
    result |= summary(result)
    save(options.json, result)
    report(result)
    if options.figure is not None:
        draw(result, options.figure)


def head_of(options: argparse.Namespace, file: ExpertFile, allowance: int) -> dict[str, Any]:
    """What the runs must be read with."""
    return {
        "what": LABEL,
        "machine": machine(),
        "kernels": ops.describe(),
        "settings": settings_of(options),
        "file": {
            "shape": file.shape._asdict(),
            "layout": {"format": file.layout.format, "hidden": file.layout.hidden, "size": file.layout.size},
            "record_bytes": file.layout.record_bytes,
            "experts_bytes": file.shape.total * file.layout.record_bytes,
            "source": file.source,
        },
        "allowance_bytes": allowance,
        "swap_bytes": swap_bytes(),
        "read_ahead_bytes": read_ahead_bytes(file.path),
    }


def measure(options: argparse.Namespace, bench: Bench, result: Mapping[str, Any]) -> None:
    """All runs that ``result`` lacks."""
    begin, runs = time.monotonic(), result["runs"]
    fits = available() > 1.05 * result["file"]["experts_bytes"] + bench.allowance
    todo = [run for run in runs_of(options, fits) if not run.is_in(runs)]
    for number, run in enumerate(todo):
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            print(f"{len(todo) - number} runs are left for the next call")
            break
        found = bench.run(run)
        runs.append(found)
        save(options.json, result)
        said = (
            f"{1e3 * found['wall_s'] / found['tokens']:.1f} ms per token"
            if "wall_s" in found
            else found["failed"]
        )
        where = f"{number + 1}/{len(todo)}, {time.monotonic() - begin:.0f} s"
        print(f"[{where}] {run.load} {run.budget} % {run.contender}: {said}", flush=True)


if __name__ == "__main__":
    main()
