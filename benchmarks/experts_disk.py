"""How fast a disk gives random records of an expert file, for ``experts.py``."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from braid.checkpoint.expert_file import ExpertFile
from braid.runner.experts.arena import HostArena

DEPTHS = (1, 2, 4)
ROWS = 16


def forget(file: ExpertFile) -> None:
    """Let the page cache drop the file, so that no run begins with what another has read."""
    descriptor = file.open_file(direct=False).descriptor
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def rates(file: ExpertFile, seed: int, *, num_bytes: int) -> dict[str, float]:
    """Bytes per second by the number of reads at the same time, each over about so many bytes.

    Into rows as a store has them, touched before: into small pages the same disk gives half as much. Past the page
    cache where the file system can; else what was read is dropped from it at once.
    """
    opened = file.open_file(direct=True)
    count = max(max(DEPTHS), min(num_bytes // file.layout.record_bytes, file.shape.total // len(DEPTHS)))
    experts = random.Random(seed).sample(range(file.shape.total), min(count * len(DEPTHS), file.shape.total))
    arena = HostArena(ROWS, file.layout.record_bytes, ROWS)
    arena.rows_RB.fill_(0)
    try:
        return {
            str(depth): _rate(
                file, opened.descriptor, experts[index * count : (index + 1) * count], depth, arena
            )
            for index, depth in enumerate(DEPTHS)
        }
    finally:
        os.close(opened.descriptor)
        if not opened.direct:
            forget(file)


def _rate(file: ExpertFile, descriptor: int, experts: Sequence[int], depth: int, arena: HostArena) -> float:
    size = file.layout.record_bytes

    def read(thread: int) -> None:
        for place in range(thread, len(experts), depth):
            got = os.preadv(descriptor, [arena.buffer(place % ROWS)], file.offset(experts[place]))
            assert got == size, (experts[place], got)

    begin = time.perf_counter()
    with ThreadPoolExecutor(depth) as threads:
        list(threads.map(read, range(depth)))
    return len(experts) * size / (time.perf_counter() - begin)
