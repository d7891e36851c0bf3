"""A limit of memory for one process and the page cache that it fills, for ``experts.py``.

A memory cgroup below one's own, of either version; where that right is missing, a balloon: another process locks so
much memory that only the limit is left. ``python benchmarks/experts_cage.py BYTES`` is that balloon.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

KINDS = ("auto", "cgroup", "balloon", "none")
_COUNT = itertools.count()
RETRY_S = 0.05
TRIES = 40


class Cage(Protocol):
    """One run's limit: the child writes its id into ``entrance``, if there is one, before it does anything else."""

    kind: str
    entrance: Path | None

    def limit(self, num_bytes: int) -> None: ...

    def peak(self) -> int | None:
        """Most bytes that were held, page cache included."""
        ...

    def page_cache(self) -> int | None:
        """Bytes of page cache held now."""
        ...

    def close(self) -> None: ...


class Group:
    """A memory cgroup."""

    def __init__(self, base: Path, version: int) -> None:
        self.kind = f"cgroup v{version}"
        self._path, self._version = base / f"braid-{os.getpid()}-{next(_COUNT)}", version
        self._path.mkdir()
        self.entrance: Path | None = self._path / "cgroup.procs"
        if not (self._path / self._name("memory.max", "memory.limit_in_bytes")).exists():
            self._path.rmdir()
            raise OSError(f"no memory controller in {base}")
        with contextlib.suppress(OSError):
            (self._path / self._name("memory.swap.max", "memory.swappiness")).write_text("0")

    def _name(self, new: str, old: str) -> str:
        return new if self._version == 2 else old

    def limit(self, num_bytes: int) -> None:
        (self._path / self._name("memory.max", "memory.limit_in_bytes")).write_text(str(num_bytes))

    def peak(self) -> int | None:
        with contextlib.suppress(OSError):
            return int((self._path / self._name("memory.peak", "memory.max_usage_in_bytes")).read_text())
        return None

    def page_cache(self) -> int | None:
        wanted = self._name("file", "total_cache")
        for line in (self._path / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name == wanted:
                return int(value)
        return None

    def close(self) -> None:
        """The kernel takes a moment to see that a process is gone."""
        for _ in range(TRIES):
            try:
                self._path.rmdir()
            except OSError:
                time.sleep(RETRY_S)
            else:
                return


class Balloon:
    """Another process holds what the limit leaves of the memory that is available now."""

    kind = "balloon"
    entrance: Path | None = None

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def limit(self, num_bytes: int) -> None:
        size = available() - num_bytes
        if size <= 0:
            return
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "locked":
            raise OSError(f"{size / 1e9:.1f} GB cannot be locked")

    def peak(self) -> int | None:
        return None

    def page_cache(self) -> int | None:
        return None

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


class Open:
    """No limit at all: its numbers say nothing about budgets."""

    kind = "none"
    entrance: Path | None = None

    def limit(self, num_bytes: int) -> None:
        pass

    def peak(self) -> int | None:
        return None

    def page_cache(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def open_cage(kind: str) -> Cage:
    """
    Raises:
        OSError: there is no right to any that was asked for.
    """
    if kind == "none":
        return Open()
    if kind in ("auto", "cgroup"):
        for base, version in bases():
            with contextlib.suppress(OSError):
                return Group(base, version)
        if kind == "cgroup":
            raise OSError("no memory cgroup can be made here")
    if not may_lock():
        raise OSError(
            "memory can neither be limited by a cgroup nor locked here; --cage none measures without limits"
        )
    return Balloon()


def bases() -> Iterator[tuple[Path, int]]:
    """Cgroups in which another may be made, each with its version: one's own, so that no limit is left."""
    own = [line.split(":", 2) for line in _lines("/proc/self/cgroup")]
    for _, point, kind, options, *_ in (line.split() for line in _lines("/proc/self/mounts")):
        for _, controllers, path in own:
            base = Path(point + path) if Path(point + path).exists() else Path(point)
            if kind == "cgroup" and "memory" in options.split(",") and "memory" in controllers.split(","):
                yield base, 1
            if kind == "cgroup2" and not controllers:
                with contextlib.suppress(OSError):
                    (base / "cgroup.subtree_control").write_text("+memory")
                yield base, 2


def available() -> int:
    return next(
        int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")
    )


def swap_bytes() -> int:
    return next(
        int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("SwapTotal")
    )


def may_lock() -> bool:
    """Whether as much memory as there is may be locked: root may."""
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def main() -> None:
    """Lock so much memory until standard input ends."""
    size = int(sys.argv[1])
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    memory = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    print("locked" if done else "refused", flush=True)
    if done:
        sys.stdin.read()


if __name__ == "__main__":
    main()
