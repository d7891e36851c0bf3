from __future__ import annotations

import io

import pytest
from rich.console import Console

from braid.cli.doctor import Fit, fits_table, machine_table, reckon
from braid.cli.sizes import WELL_KNOWN
from braid.core.spec import MachineSpec

GIB = 1 << 30


def machine(ram: int) -> MachineSpec:
    return MachineSpec(
        cpu_name="Sample",
        cores=2,
        isa="avx2 fma",
        ram_bytes=ram,
        ram_available_bytes=ram,
        memory_bandwidth=30e9,
    )


def shown(table: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_well_known_sizes_are_plausible() -> None:
    for spec in WELL_KNOWN:
        assert 0 < spec.active_parameters <= spec.num_parameters
        assert spec.kv_numbers_per_token % spec.num_layers == 0
    assert len({spec.name for spec in WELL_KNOWN}) == len(WELL_KNOWN)


def test_the_decode_limit_is_bandwidth_over_active_bytes() -> None:
    olmoe = next(spec for spec in WELL_KNOWN if spec.name.startswith("OLMoE"))
    assert reckon(olmoe, machine(64 * GIB), "bfloat16").decode_limit == pytest.approx(30e9 / (2 * 1.28e9))


def test_what_fits_depends_on_memory() -> None:
    small, large = WELL_KNOWN[0], WELL_KNOWN[-1]
    assert reckon(small, machine(4 * GIB), "bfloat16").kv_tokens
    assert reckon(large, machine(4 * GIB), "bfloat16").kv_tokens is None


def test_tables() -> None:
    facts = shown(machine_table(machine(4 * GIB), "reference"))
    for text in ("Sample", "avx2 fma", "30.0 GB/s", "4.0 GiB", "reference", "none that torch sees"):
        assert text in facts
    fits = [Fit("small", "bfloat16", 2 * GIB, 12_345, 15.04), Fit("large", "float32", 99 * GIB, None, 0.1)]
    rows = shown(fits_table(fits, machine(4 * GIB)))
    for text in ("12,345", "15.0", "does not fit", "derived"):
        assert text in rows
