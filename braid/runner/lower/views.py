"""One block's KV over all layers as bytes: where it lies on a CPU, or by way of a staging buffer on other devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from braid.runner.kv_store import KVStore


class BlockViews(Protocol):
    """The parts of a block, layer after layer; all blocks have the same sizes."""

    @property
    def num_bytes(self) -> int:
        """Of one block."""
        ...

    def read(self, block: int) -> Sequence[memoryview]:
        """Its bytes, valid until the next call."""
        ...

    def room(self, block: int) -> Sequence[memoryview]:
        """Where to put its bytes; ``commit`` must follow before the next call."""
        ...

    def commit(self, block: int) -> None:
        """What was put into ``room`` is the block's content."""
        ...

    def clear(self, block: int) -> None:
        """Zeros: attention multiplies what it masks by zero, so garbage in a freed block would reach its next owner."""
        ...


def block_views(kv: KVStore) -> BlockViews:
    """For the device that the store is on."""
    is_cpu = kv.layers[0][0].device.type == "cpu"
    return HostBlocks(kv) if is_cpu else StagedBlocks(kv)


class HostBlocks:
    """Blocks in main memory: their bytes are where they are, and nothing is copied on the way."""

    def __init__(self, kv: KVStore) -> None:
        self._rows = [tensor.view(torch.uint8).flatten(1).numpy() for layer in kv.layers for tensor in layer]
        self.num_bytes = sum(rows.shape[1] for rows in self._rows)

    def read(self, block: int) -> Sequence[memoryview]:
        return [rows[block].data for rows in self._rows]

    def room(self, block: int) -> Sequence[memoryview]:
        return self.read(block)

    def commit(self, block: int) -> None:
        pass

    def clear(self, block: int) -> None:
        for rows in self._rows:
            rows[block] = 0


class DeviceCopies:
    """Copies of a block to and from one flat buffer in main memory, on a stream of their own.

    The stream waits for what was launched before: a block may be stored before the step that filled it is over on the
    device, and loaded into while its last reader still runs.
    """

    def __init__(self, kv: KVStore) -> None:
        self._rows = [tensor.view(torch.uint8).flatten(1) for layer in kv.layers for tensor in layer]
        self._sizes = [rows.shape[1] for rows in self._rows]
        self.num_bytes = sum(self._sizes)
        self._device = self._rows[0].device
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def down(self, block: int, buffer_B: Tensor) -> None:
        """Device to ``buffer_B`` (uint8); there after ``wait``."""
        for part, rows in zip(torch.split(buffer_B, self._sizes), self._rows, strict=True):
            part.copy_(rows[block], non_blocking=True)

    def up(self, block: int, buffer_B: Tensor) -> None:
        """``buffer_B`` to device; there after ``wait``."""
        for part, rows in zip(torch.split(buffer_B, self._sizes), self._rows, strict=True):
            rows[block].copy_(part, non_blocking=True)

    def clear(self, block: int) -> None:
        for rows in self._rows:
            rows[block].zero_()

    def after_compute(self) -> AbstractContextManager[object]:
        """Where copies are to be launched: behind all that was launched so far by anybody."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        return torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Until all copies so far are over."""
        if self._stream is not None:
            self._stream.synchronize()

    def buffer(self, *shape: int) -> Tensor:
        """Main memory that the device can copy from and to by itself."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._stream is not None)


class StagedBlocks:
    """Blocks on another device, one at a time in a buffer in main memory."""

    def __init__(self, kv: KVStore) -> None:
        self._copies = DeviceCopies(kv)
        self.num_bytes = self._copies.num_bytes
        self._buffer_B = self._copies.buffer(self.num_bytes)
        self._view: memoryview = self._buffer_B.numpy().data

    def read(self, block: int) -> Sequence[memoryview]:
        with self._copies.after_compute():
            self._copies.down(block, self._buffer_B)
        self._copies.wait()
        return [self._view]

    def room(self, block: int) -> Sequence[memoryview]:
        return [self._view]

    def commit(self, block: int) -> None:
        with self._copies.after_compute():
            self._copies.up(block, self._buffer_B)
        self._copies.wait()

    def clear(self, block: int) -> None:
        with self._copies.after_compute():
            self._copies.clear(block)
        self._copies.wait()
