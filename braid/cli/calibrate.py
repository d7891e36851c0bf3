"""``braid calibrate``: how long steps take on this machine, as tables for simulations."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from braid.cli.progress import ConsoleProgress
from braid.core.config import EngineConfig
from braid.core.env import cache_dir
from braid.core.errors import BraidError, InvalidParameterError
from braid.device.bandwidth import read_bandwidth
from braid.device.machine import probe
from braid.engine.build import Built, build_engine
from braid.engine.calibrate import VERSION, Calibration
from braid.engine.calibrate import calibrate as sweep
from braid.policy.calibration import cost_to_data


def calibrate(config: EngineConfig, out: Path | None, repeats: int) -> None:
    """Measure, write, and show."""
    if repeats < 1:
        raise InvalidParameterError(f"repeats must be at least 1, got {repeats}", param="repeats")
    machine = probe(gpu=True)
    machine = replace(machine, memory_bandwidth=read_bandwidth(machine.cores))
    built = build_engine(config, eos_token_ids=frozenset(), progress=ConsoleProgress())
    info = built.core.info
    path = out or cache_dir() / "profiles" / f"{info.model.replace('/', '--')}-{info.dtype}.json"
    profile = f"{info.model} {info.dtype} on {machine.cpu_name}, {machine.cores} cores"
    try:
        found = _swept(built, info.vocab_size, profile, repeats)
    finally:
        built.core.close()
    data = {
        "version": VERSION,
        "machine": asdict(machine),
        "model": info.model,
        "dtype": info.dtype,
        "scheduler": found.manifest,
        "repeats": repeats,
        "held_out_error": found.errors,
        "cost": cost_to_data(found.cost),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise BraidError(f"cannot write {path}: {error.strerror}") from None
    _show(found, path)


def _swept(built: Built, vocab_size: int, profile: str, repeats: int) -> Calibration:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        return sweep(built.core.runner, built.limits, vocab_size, profile, repeats=repeats, tell=tell)


def _show(found: Calibration, path: Path) -> None:
    cost, console = found.cost, Console()
    table = Table(title=f"step times of {cost.profile}", title_justify="left")
    for name in ("step", "ms"):
        table.add_column(name, justify="right" if name == "ms" else "left")
    for tokens in cost.dense.knots:
        table.add_row(f"{tokens:.0f} tokens, no context", f"{1e3 * cost.dense.at(tokens).seconds:.1f}")
    table.add_row("more where a step has chunks", f"{1e3 * cost.eager:.1f}")
    last = cost.decode.columns[-1]
    table.add_row(f"attention of 1 decode at {last:.0f}", f"{1e3 * cost.decode.at(1, last).seconds:.1f}")
    chunk, behind = cost.prefill.rows[-1], cost.prefill.columns[-1]
    spent = 1e3 * cost.prefill.at(chunk, behind).seconds
    table.add_row(f"attention of a chunk of {chunk:.0f} behind {behind:.0f}", f"{spent:.1f}")
    console.print(table)
    errors = ", ".join(f"{kind} {error:.1%}" for kind, error in found.errors.items())
    lines = (
        f"{found.num_steps} steps measured; median error on other steps: {errors}; mixing factor {cost.mixing:.2f}",
        f"kept as {path}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
