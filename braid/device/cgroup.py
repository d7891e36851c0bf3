"""What a Linux control group (version 1 or 2) leaves of the machine to this process.

A limit may sit on any level between the process's own group and the root of the mount, so every function
takes the tightest of them. Where nothing is limited, or this is not Linux, the answer is None.

Source: the kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest page-aligned 63-bit number."""


class Level(NamedTuple):
    """One control group directory that binds this process."""

    path: Path
    version: int


class MemoryLimit(NamedTuple):
    """Bytes. ``available`` counts page cache that the kernel can drop as free."""

    limit: int
    available: int


def levels(controller: str, root: Path = Path("/")) -> Iterator[Level]:
    """The groups of ``controller`` ("cpu" or "memory"), from this process's own up to the mount's root."""
    for path, version in _own_groups(controller, root):
        for mount_root, mount in _mounts(controller, version, root):
            yield from _walk_up(mount, _relative(path, mount_root), version)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of CPU time that the tightest group grants, for example 1.5."""
    quotas = [quota for level in levels("cpu", root) if (quota := _level_quota(level)) is not None]
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The tightest limit, and the least that any group still has to give."""
    found = [limit for level in levels("memory", root) if (limit := _level_memory(level)) is not None]
    if not found:
        return None
    return MemoryLimit(min(item.limit for item in found), min(item.available for item in found))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _own_groups(controller: str, root: Path) -> Iterator[tuple[str, int]]:
    for line in _lines(root / "proc/self/cgroup"):
        number, names, path = line.split(":", 2)
        if number == "0" and names == "":
            yield path, 2
        elif controller in names.split(","):
            yield path, 1


def _mounts(controller: str, version: int, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (group shown at the mount point, mount point); a container may see only a part of the tree."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        mount_root, mount_point = fields.split(" ")[3:5]
        v2 = version == 2 and kind == "cgroup2"
        v1 = version == 1 and kind == "cgroup" and controller in options.split(",")
        if v1 or v2:
            yield mount_root, root / mount_point.lstrip("/")


def _relative(path: str, mount_root: str) -> Path:
    outside = mount_root != "/" and not Path(path).is_relative_to(mount_root)
    return Path() if outside else Path(path).relative_to(mount_root)


def _walk_up(mount: Path, relative: Path, version: int) -> Iterator[Level]:
    for below in (relative, *relative.parents):
        if (mount / below).is_dir():
            yield Level(mount / below, version)


def _number(path: Path) -> int | None:
    words = " ".join(_lines(path)).split()
    return int(words[0]) if len(words) == 1 and words[0].lstrip("-").isdigit() else None


def _level_quota(level: Level) -> float | None:
    if level.version == 2:
        words = " ".join(_lines(level.path / "cpu.max")).split()
        return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None
    quota, period = (_number(level.path / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and period and quota > 0 else None


def _level_memory(level: Level) -> MemoryLimit | None:
    v2 = level.version == 2
    limit = _number(level.path / ("memory.max" if v2 else "memory.limit_in_bytes"))
    used = _number(level.path / ("memory.current" if v2 else "memory.usage_in_bytes"))
    if limit is None or limit >= NO_LIMIT:
        return None
    droppable = _stat(level.path / "memory.stat", "inactive_file" if v2 else "total_inactive_file")
    return MemoryLimit(limit, max(0, limit - max(0, (used or 0) - droppable)))


def _stat(path: Path, key: str) -> int:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
