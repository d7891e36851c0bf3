"""What this process may use of the machine: cores, instruction sets, memory and, if asked, the GPU."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from braid.core.errors import BraidError
from braid.core.spec import MachineSpec
from braid.device.cgroup import cpu_quota, memory_limit

X86_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip
ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")


class Memory(NamedTuple):
    """Bytes of RAM that this process may ever use, and those it could use now."""

    total: int
    available: int


class Gpu(NamedTuple):
    name: str
    total_bytes: int
    free_bytes: int


def probe(*, gpu: bool = False, root: Path = Path("/")) -> MachineSpec:
    """Read the machine's limits; takes milliseconds unless ``gpu``, which imports torch.

    Args:
        gpu: look for the first CUDA device, if torch is installed.
        root: where ``proc`` and ``sys`` are; tests give a sample tree.
    """
    memory = usable_memory(root)
    card = probe_gpu() if gpu else None
    return MachineSpec(
        cpu_name=cpu_name(root),
        cores=usable_cores(root),
        isa=" ".join(instruction_sets(root)),
        ram_bytes=memory.total,
        ram_available_bytes=memory.available,
        gpu_name=card.name if card else None,
        gpu_bytes=card.total_bytes if card else 0,
        gpu_free_bytes=card.free_bytes if card else 0,
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: its affinity mask, cut by the control group's quota.

    A part of a core is not counted (unless it is all there is): a thread on it would make its team wait.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def usable_memory(root: Path = Path("/")) -> Memory:
    """RAM, cut by the control group's limit and by what its other processes hold.

    Raises:
        BraidError: not Linux, and psutil is not installed.
    """
    total, available = _meminfo(root) or _psutil_memory()
    limit = memory_limit(root)
    if limit is None:
        return Memory(total, available)
    return Memory(min(total, limit.limit), min(available, limit.available))


def instruction_sets(root: Path = Path("/")) -> tuple[str, ...]:
    """The vector instruction sets that matter to kernels, oldest first; the architecture where unknown."""
    info = _cpuinfo(root)
    flags = (info.get("flags") or info.get("Features") or "").split()
    known = tuple(name for name in X86_FEATURES + ARM_FEATURES if name in flags)
    return known or (platform.machine() or "unknown",)


def cpu_name(root: Path = Path("/")) -> str:
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine() or "unknown"


def probe_gpu() -> Gpu | None:
    """The first CUDA device as torch sees it; None without one or without torch."""
    if find_spec("torch") is None:
        return None
    import torch  # the one place in this room: asking for a GPU is asking for torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return Gpu(torch.cuda.get_device_name(0), total, free)


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        first, _, _ = (root / "proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _meminfo(root: Path) -> Memory | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
    return Memory(kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024)


def _psutil_memory() -> Memory:
    if find_spec("psutil") is None:
        raise BraidError(f"cannot read the memory of {platform.system()} without psutil: pip install psutil")
    import psutil  # only where /proc is missing

    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)
