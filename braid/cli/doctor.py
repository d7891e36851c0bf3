"""``braid doctor``: what this machine has, what its memory can do, and which models fit."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from braid.cli.sizes import WELL_KNOWN
from braid.cli.units import format_bytes
from braid.core.errors import CapacityError
from braid.core.spec import MachineSpec, ModelSpec
from braid.device.bandwidth import read_bandwidth
from braid.device.machine import probe
from braid.policy.fit import fit

DTYPES = ("bfloat16", "float32")
BLOCK_SIZE = 16
LONGEST = 4096
"""Context that a model must be able to hold once to count as fitting, in tokens (or its own, if shorter)."""


class Fit(NamedTuple):
    """One model in one number format. ``kv_tokens`` is None where it does not fit.

    ``decode_limit`` is tokens per second of one stream: measured bandwidth over the bytes of the weights that one
    token touches. It is derived, an upper limit; KV reads, activations and everything else come on top.
    """

    model: str
    dtype: str
    weight_bytes: int
    kv_tokens: int | None
    decode_limit: float


def doctor(*, as_json: bool) -> None:
    """Measure (about a second; longer where torch must be imported) and print."""
    machine = probe(gpu=True)
    machine = replace(machine, memory_bandwidth=read_bandwidth(machine.cores))
    fits = [reckon(spec, machine, dtype) for spec in WELL_KNOWN for dtype in DTYPES]
    kernels = kernels_in_use()
    if as_json:
        report = {"machine": asdict(machine), "kernels": kernels, "fits": [item._asdict() for item in fits]}
        print(msgspec.json.encode(report).decode())
        return
    console = Console()
    console.print(machine_table(machine, kernels))
    console.print(fits_table(fits, machine))
    console.print(
        "decode limit: derived, not measured: memory bandwidth / bytes of weights one token reads. Real speed is "
        "below it. The bandwidth is measured now: other work on the machine lowers it.",
        style="dim",
    )


def reckon(spec: ModelSpec, machine: MachineSpec, dtype: str) -> Fit:
    """What ``braid serve`` would reckon at its start, on the CPU."""
    assert machine.memory_bandwidth is not None
    limit = machine.memory_bandwidth / replace(spec, num_parameters=spec.active_parameters).weight_bytes(
        dtype
    )
    try:
        plan = fit(
            spec,
            replace(machine, gpu_name=None, gpu_bytes=0, gpu_free_bytes=0),
            dtype=dtype,
            kv_dtype=dtype,
            block_size=BLOCK_SIZE,
            max_model_len=min(LONGEST, spec.max_model_len),
        )
    except CapacityError:
        return Fit(spec.name, dtype, spec.weight_bytes(dtype), None, limit)
    return Fit(spec.name, dtype, spec.weight_bytes(dtype), plan.num_blocks * BLOCK_SIZE, limit)


def kernels_in_use() -> str:
    """Which kernels the engine would compute with."""
    if find_spec("torch") is None:
        return "none: torch is not installed (pip install 'braid[engine]')"
    import braid.kernels

    return braid.kernels.describe()


def machine_table(machine: MachineSpec, kernels: str) -> Table:
    """Facts about the machine, one per row."""
    assert machine.memory_bandwidth is not None
    table = Table("machine", "", title_justify="left")
    table.add_row("processor", machine.cpu_name)
    table.add_row("usable cores", str(machine.cores))
    table.add_row("instruction sets", machine.isa)
    table.add_row(
        "memory", f"{format_bytes(machine.ram_bytes)}, {format_bytes(machine.ram_available_bytes)} available"
    )
    table.add_row(
        "memory bandwidth", f"{machine.memory_bandwidth / 1e9:.1f} GB/s read (measured, all usable cores)"
    )
    table.add_row("GPU", _gpu(machine))
    table.add_row("kernels", kernels)
    return table


def _gpu(machine: MachineSpec) -> str:
    if machine.gpu_name is None:
        return "none that torch sees"
    return f"{machine.gpu_name}, {format_bytes(machine.gpu_free_bytes)} of {format_bytes(machine.gpu_bytes)} free"


def fits_table(fits: list[Fit], machine: MachineSpec) -> Table:
    """What fits into memory on the CPU now, and how fast one stream could decode at most."""
    title = f"What fits into {format_bytes(machine.ram_available_bytes)} with a context of {LONGEST} tokens"
    table = Table("model", "dtype", title=title, title_justify="left")
    table.add_column("weights", justify="right")
    table.add_column("KV tokens", justify="right")
    table.add_column("decode limit tok/s (derived)", justify="right")
    for item in fits:
        room = "does not fit" if item.kv_tokens is None else f"{item.kv_tokens:,}"
        limit = "" if item.kv_tokens is None else f"{item.decode_limit:.1f}"
        table.add_row(item.model, item.dtype, format_bytes(item.weight_bytes), room, limit)
    return table
