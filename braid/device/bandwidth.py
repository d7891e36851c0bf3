"""Measured memory read bandwidth: the limit of decode, which reads every active weight once per step."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SIZE = 256 << 20
"""Bytes read per pass: several times the largest last-level cache a core can fill alone."""


def read_bandwidth(
    threads: int, *, size: int = SIZE, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Bytes per second that ``threads`` threads read together: the best pass within ``seconds``.

    Each thread takes the maximum of its share of an int32 buffer: of numpy's reductions the one that comes
    closest to the memory's own speed, and it runs outside the interpreter lock. The best pass is taken because
    other work on the machine can only slow a pass down. At least two passes run, however slow the machine is.
    """
    buffer = np.ones(size // 4, np.int32)
    parts = np.array_split(buffer, threads)
    start, best, passes = clock(), float("inf"), 0
    with ThreadPoolExecutor(threads) as pool:
        while passes < 2 or clock() - start < seconds:
            best = min(best, _timed_pass(pool, parts, clock))
            passes += 1
    return buffer.nbytes / best


def _timed_pass(pool: ThreadPoolExecutor, parts: list[np.ndarray], clock: Callable[[], float]) -> float:
    start = clock()
    list(pool.map(np.maximum.reduce, parts))
    return clock() - start
