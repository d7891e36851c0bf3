"""Agents in the simulator: all studies of agent policies, on recorded and synthetic programs, with intervals.

Every study (``agents_studies.py``) is a trace, a load, tiers and policies, for several seeds; a seed chooses programs
and starts, the same for all policies of a study, and every program is played to its end. Step times are the roofline
estimate of the named GPU, which nobody has checked there: ratios are worth more than seconds. Every run is kept in
``--out`` as JSON and taken from there as long as neither its configuration nor the simulated code has changed, so an
interrupted study goes on.

    python benchmarks/agents_simulated.py --data DIR --out DIR [--only NAME,...] [--seeds 5] [--jobs 2]
        [--json FILE] [--figure PNG] [--list]

DIR holds ``agents/weka_requests.csv.gz`` and ``agents/lmcache_agentic_calls.jsonl``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from agents_simulated_show import draw, show_goals, show_study
from agents_simulated_sums import goals_of, summary_of
from agents_studies import MACHINE, MODEL, STUDIES, Load, Source, Study, Variant
from common import machine, save
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import braid
from braid.core.errors import BraidError
from braid.lab.programs.families import Families, FamilyOptions, families_of
from braid.lab.readers import read_trace
from braid.lab.synthetic.pair import with_lengths
from braid.lab.synthetic.programs import KINDS, synthesize
from braid.lab.table import Trace
from braid.policy.agents.catalog import AgentSettings
from braid.sim.agents import AgentSetup, run_agents
from braid.sim.compare import numbers_of
from braid.sim.platform import roofline_platform

WEKA, LMCACHE = "agents/weka_requests.csv.gz", "agents/lmcache_agentic_calls.jsonl"
SYNTHETIC_PROGRAMS = 1000
SIMULATED = (
    "core",
    "policy",
    "sched",
    "sim",
    "lab/programs",
    "lab/readers",
    "lab/replay/planning",
    "lab/synthetic",
)
"""Rooms whose code a run depends on."""


Ended = Mapping[Path, Mapping[str, Any]]
"""What runs gave, by the file where it is kept."""


class Task(NamedTuple):
    data: Path
    path: Path
    code: str
    study: Study
    variant: Variant
    seed: int

    @property
    def config(self) -> dict[str, Any]:
        """As JSON has it, so that it can be compared with what was kept."""
        whole = {**self.study.config(self.variant), "seed": self.seed, "code": self.code}
        plain: dict[str, Any] = json.loads(json.dumps(whole))
        return plain


def code_hash() -> str:
    """Of all that decides what a run gives."""
    root = Path(braid.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for room in SIMULATED for path in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _trace(data: Path, source: Source) -> Trace:
    if source.trace in KINDS:
        return synthesize(source.trace, SYNTHETIC_PROGRAMS, eta=source.eta)
    weka = read_trace(data / WEKA)
    return weka if source.trace == "weka" else with_lengths(read_trace(data / LMCACHE), weka)


@lru_cache(maxsize=2)
def families(data: Path, source: Source) -> Families:
    """The programs of a source; kept, since runs of a study follow each other."""
    options = FamilyOptions(
        max_turns=source.max_turns,
        max_gap_s=source.max_gap_s,
        max_model_len=roofline_platform(MACHINE, MODEL, "bfloat16").context,
    )
    found = families_of(_trace(data, source), options)
    return found._replace(
        families=tuple(
            replace(
                each,
                turns=tuple(replace(turn, delay_s=turn.delay_s * source.gap_scale) for turn in each.turns),
            )
            for each in found.families
        )
    )


def setup_of(load: Load, variant: Variant) -> AgentSetup:
    platform = roofline_platform(MACHINE, MODEL, "bfloat16")
    return AgentSetup(
        cost=platform.cost,
        machine=platform.words,
        rate=load.rate,
        num_programs=load.programs,
        kv_tokens=platform.kv_tokens,
        host_kv_tokens=load.host_kv_tokens,
        tiers=platform.tiers(load.block_size, 2e9) if load.host_kv_tokens else None,
        max_model_len=platform.context,
        max_num_seqs=platform.max_num_seqs,
        max_num_batched_tokens=platform.max_num_batched_tokens,
        block_size=load.block_size,
        grain=load.grain,
        clients=variant.clients,
        settings=AgentSettings(**dict(variant.settings)),  # type: ignore[arg-type]
    )


def begin() -> None:
    """Of every process: an interrupt lets runs end, and nothing of a run is garbage before its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def work(task: Task) -> dict[str, Any]:
    """One run, kept in its file."""
    found = families(task.data, task.study.load.source)
    began = time.process_time()
    setup = setup_of(task.study.load, task.variant)
    run = run_agents(found.families, setup, task.variant.policy, task.seed)
    made = {
        "config": task.config,
        "notes": found.notes,
        "cpu_s": time.process_time() - began,
        "numbers": {
            **numbers_of(run),
            "programs": len(run.jct_s),
            "turns": len(run.ttft_first_s) + len(run.ttft_later_s),
        },
    }
    gc.collect()
    partial = task.path.with_suffix(".part")
    partial.write_text(json.dumps(made))
    partial.replace(task.path)
    return made


def kept(task: Task) -> dict[str, Any] | None:
    """What an earlier study left, if it is of this very run."""
    try:
        made: dict[str, Any] = json.loads(task.path.read_text())
    except (OSError, ValueError):
        return None
    return made if made.get("config") == task.config else None


def tasks_of(studies: Sequence[Study], seeds: int, data: Path, out: Path) -> Iterator[Task]:
    code = code_hash()
    for study in studies:
        (out / study.name).mkdir(parents=True, exist_ok=True)
        for seed in range(seeds):
            for variant in study.variants:
                name = variant.name.replace(" ", "-").replace(",", "").replace("%", "")
                yield Task(data, out / study.name / f"{name}.{seed}.json", code, study, variant, seed)


def run_all(tasks: Sequence[Task], jobs: int) -> tuple[Ended, list[str]]:
    """What every task gave; and of those that failed, why."""
    ended = {task.path: made for task in tasks if (made := kept(task)) is not None}
    failed: list[str] = []
    todo = [task for task in tasks if task.path not in ended]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), begin) as pool,
    ):
        bar = progress.add_task(f"{len(ended)} runs kept", total=len(todo))
        waiting = {pool.submit(work, task): task for task in todo}
        try:
            for future in as_completed(waiting):
                task = waiting[future]
                try:
                    ended[task.path] = future.result()
                except (BraidError, AssertionError) as error:
                    failed.append(f"{task.study.name}, {task.variant.name}, seed {task.seed}: {error!r}")
                progress.update(bar, advance=1, description=task.study.name)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise SystemExit("interrupted; runs that have ended are kept") from None
    return ended, failed


def result_of(tasks: Sequence[Task], ended: Ended, failed: Sequence[str]) -> dict[str, Any]:
    """Per study the means of all seeds with intervals and ratios; and what the goals say to them."""
    runs: dict[str, dict[str, dict[int, Any]]] = {}
    made: dict[str, Any] = {}
    for task in tasks:
        if task.path in ended:
            of_variant = runs.setdefault(task.study.name, {}).setdefault(task.variant.name, {})
            of_variant[task.seed] = ended[task.path]["numbers"]
            notes = ended[task.path]["notes"]
            load = asdict(task.study.load)
            made[task.study.name] = {"words": task.study.words, "config": load, "notes": notes}
    made = {name: about | summary_of(runs[name]) for name, about in made.items()}
    platform = roofline_platform(MACHINE, MODEL, "bfloat16")
    return {
        "simulated": platform.words,
        "kv_tokens": platform.kv_tokens,
        "code": code_hash(),
        "cpu_s": sum(each["cpu_s"] for each in ended.values()),
        "failed": list(failed),
        "goals": goals_of(made),
        "studies": made,
    }


def chosen(only: str | None) -> list[Study]:
    names = {study.name for study in STUDIES}
    wanted = set(only.split(",")) if only else names
    if unknown := wanted - names:
        raise SystemExit(
            f"no study is named {', '.join(sorted(unknown))}; choices: {', '.join(sorted(names))}"
        )
    return [study for study in STUDIES if study.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where every run is kept")
    parser.add_argument("--only", metavar="NAME,...")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="the summary; of all studies by default in --out")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--list", action="store_true", help="only say what there is")
    options = parser.parse_args()
    if options.only is None:
        options.json = options.json or options.out / "agents-simulated.json"
        options.figure = options.figure or options.out / "agents-simulated.png"
    studies = chosen(options.only)
    if options.list:
        for study in studies:
            print(f"{study.name}: {study.words}; {len(study.variants)} x {options.seeds} runs")
        return
    tasks = list(tasks_of(studies, options.seeds, options.data, options.out))
    ended, failed = run_all(tasks, options.jobs)
    result = {"machine": machine(), **result_of(tasks, ended, failed)}
    for name, study in result["studies"].items():
        show_study(name, study)
    show_goals(result)
    save(options.json, result)
    if options.figure is not None:
        draw(result, options.figure)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
