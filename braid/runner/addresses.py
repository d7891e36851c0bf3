"""Memory that is there when it is used: addresses for all of it, pages for what was touched.

So a store may have room to grow without taking it from others, and give a part back where it is.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Iterable

_IS_LINUX = sys.platform == "linux"
_MAP_NORESERVE = 0x4000 if _IS_LINUX else 0
"""Addresses alone cost nothing, so systems need not set memory aside for what may never be used."""
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 14, 23
"""Of Linux, the second of 5.14; Python has no name for it."""


def addresses(num_bytes: int) -> mmap.mmap:
    """Zeros, none of which has a page yet.

    Raises:
        OSError, OverflowError: the system has a limit on addresses.
    """
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def favour(memory: mmap.mmap, begin: int, end: int, *, now: bool = False) -> None:
    """Ask for large pages in bytes ``[begin, end)``, and for all of them now, else when they are touched.

    Systems may not know it, or have none.
    """
    if not _IS_LINUX:
        return
    for wish in (_MADV_HUGEPAGE, _MADV_POPULATE_WRITE) if now else (_MADV_HUGEPAGE,):
        with contextlib.suppress(OSError):
            memory.madvise(wish, begin, end - begin)


def give_back(memory: mmap.mmap, begin: int, end: int) -> None:
    """The whole pages in bytes ``[begin, end)`` are free for others; what is read there next are zeros."""
    begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours together: ``[first, end)`` of each, in order."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found
