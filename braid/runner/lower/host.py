"""KV in main memory, below a device that has memory of its own."""

from __future__ import annotations

from torch import Tensor

from braid.runner.kv_store import KVStore
from braid.runner.lower.views import DeviceCopies

PART_BYTES = 1 << 28
"""Memory is taken in parts, as torch rounds what a device may copy from up to a power of two."""


class HostSlots:
    """``num_slots`` blocks in memory that the device copies from and to by itself.

    Raises:
        RuntimeError: there is not so much memory.
    """

    name = "host"

    def __init__(self, kv: KVStore, num_slots: int) -> None:
        self._copies = DeviceCopies(kv)
        size = self._copies.num_bytes
        self._per_part = max(1, PART_BYTES // size)
        self._parts_SB = [
            self._copies.buffer(min(self._per_part, num_slots - first), size)
            for first in range(0, num_slots, self._per_part)
        ]
        self._keys: list[bytes | None] = [None] * num_slots

    def store(self, slot: int, key: bytes, block: int) -> None:
        """The slot holds the block after ``wait``."""
        self._keys[slot] = key
        with self._copies.after_compute():
            self._copies.down(block, self._bytes(slot))

    def load(self, slot: int, key: bytes, block: int) -> bool:
        """The block holds the slot's content after ``wait``; False if that is something else."""
        if self._keys[slot] != key:
            return False
        with self._copies.after_compute():
            self._copies.up(block, self._bytes(slot))
        return True

    def wait(self) -> None:
        """Until all copies so far are over."""
        self._copies.wait()

    def close(self) -> None:
        """Nothing is copied any more."""

    def _bytes(self, slot: int) -> Tensor:
        return self._parts_SB[slot // self._per_part][slot % self._per_part]
