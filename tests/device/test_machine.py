from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from braid.device.machine import Memory, cpu_name, instruction_sets, probe, usable_cores, usable_memory

X86 = """\
processor\t: 0
model name\t: AMD EPYC 9B14
flags\t\t: fpu sse4_2 avx avx2 fma avx512f amx_tile

processor\t: 1
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd aes asimddp sve bf16 i8mm
CPU part\t: 0xd40
"""
MEMINFO = """\
MemTotal:       1000 kB
MemFree:          10 kB
MemAvailable:    600 kB
HugePages_Total:       0
"""


def tree(root: Path, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    for name, text in files.items():
        (root / "proc" / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, ("sse4_2", "avx", "fma", "avx2", "avx512f", "amx_tile")),
        (ARM, ("asimd", "asimddp", "i8mm", "bf16", "sve")),
    ],
)
def test_instruction_sets(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert instruction_sets(tree(tmp_path, cpuinfo=text)) == expected


def test_without_cpuinfo_the_architecture_is_named(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path) == (os.uname().machine,)
    assert cpu_name(tmp_path)


def test_cpu_name(tmp_path: Path) -> None:
    assert cpu_name(tree(tmp_path, cpuinfo=X86)) == "AMD EPYC 9B14"


def test_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert usable_memory(tree(tmp_path, meminfo=MEMINFO)) == Memory(1000 * 1024, 600 * 1024)


def test_a_control_group_cuts_memory(tmp_path: Path) -> None:
    root = tree(tmp_path, meminfo=MEMINFO)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text(str(500 * 1024))
    (root / "sys/fs/cgroup/memory.current").write_text(str(200 * 1024))
    assert usable_memory(root) == Memory(500 * 1024, 300 * 1024)


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("350000 100000", 3), ("max 100000", 8)]
)
def test_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = tree(tmp_path)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert usable_cores(root) == expected


def test_probe_of_this_machine() -> None:
    spec = probe()
    assert spec.cores >= 1
    assert 0 < spec.ram_available_bytes <= spec.ram_bytes
    assert spec.isa
    assert spec.gpu_name is None


def test_probe_without_gpu_leaves_torch_out() -> None:
    code = "import sys, braid.device.machine as m; m.probe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
