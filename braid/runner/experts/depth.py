"""How many reads at the same time the disk of an expert file does best with."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from braid.checkpoint.expert_file import ExpertFile
from braid.runner.experts.arena import HostArena

DEPTHS = (2, 3, 4)
DEFAULT = 2
"""Where measuring would say nothing: a file so small that it is read in no time, or read through the page cache."""
MIN_BYTES = 1 << 30
ROUNDS = 4
"""Reads of every thread, per depth."""
NEAR = 0.95
"""Of the best rate: the smallest depth that reaches so much is taken."""


def measured_depth(file: ExpertFile) -> int:
    """The depth among ``DEPTHS`` that reads records of this file fastest; reads a few dozen, all over the file.

    Raises:
        CheckpointError: the file is gone, or has changed.
    """
    if file.size_bytes < MIN_BYTES:
        return DEFAULT
    opened = file.open_file(direct=True)
    try:
        if not opened.direct:
            return DEFAULT
        rates = {depth: _rate(file, opened.descriptor, depth) for depth in DEPTHS}
    except OSError:  # whoever needs such a record will be told
        return DEFAULT
    finally:
        os.close(opened.descriptor)
    return next(depth for depth, rate in rates.items() if rate >= NEAR * max(rates.values()))


def _rate(file: ExpertFile, descriptor: int, depth: int) -> float:
    """Records per second, into rows as those of the store are: into small pages a disk is read half as fast."""
    arena = HostArena(depth, file.layout.record_bytes, depth)
    count = depth * ROUNDS
    stride = max(1, file.shape.total // (count + 1))
    experts = [((index + 1) * stride + depth) % file.shape.total for index in range(count)]

    def read(thread: int) -> None:
        for expert in experts[thread::depth]:
            os.preadv(descriptor, [arena.buffer(thread)], file.offset(expert))

    begin = time.perf_counter()
    with ThreadPoolExecutor(depth) as threads:
        list(threads.map(read, range(depth)))
    return count / (time.perf_counter() - begin)
