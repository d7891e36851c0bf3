"""Memory for the records of experts: equal rows, each as a file holds it and kernels compute with it.

Rows are made once. Another expert in a row is a read into it and nothing else: nothing is mapped, freed or faulted.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from braid.core.experts import PAGE
from braid.runner.addresses import addresses, favour, give_back


class Arena(Protocol):
    """Rows [R, record_bytes] of uint8 that kernels read and reader threads fill."""

    rows_RB: Tensor
    is_in_place: bool
    """Growing leaves rows where they are: whoever computes with them need not stop."""

    @property
    def num_rows(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Rows that ``grow`` may ask for."""
        ...

    def buffer(self, row: int) -> memoryview:
        """Where the calling thread puts the record of a row; ``landed`` must follow before its next call."""
        ...

    def landed(self, row: int) -> None:
        """What is in the buffer is the row's content: kernels may read it when this returns."""
        ...

    def used(self) -> None:
        """Kernels that read rows were launched by the calling thread; nothing is written under them."""
        ...

    def grow(self, num_rows: int) -> None:
        """Have at least so many rows; all keep what they hold."""
        ...

    def give_back(self, row: int) -> None:
        """Nobody reads or fills this row until it is filled again: its memory is free for others, where it can be."""
        ...

    def close(self) -> None:
        """Nobody copies from it any more."""
        ...


def open_arena(
    num_rows: int, record_bytes: int, capacity: int, device: torch.device, *, pinned: bool = False
) -> Arena:
    """Rows on ``device``.

    Args:
        pinned: a GPU is to copy from rows in main memory by itself.

    Raises:
        OSError, RuntimeError: there is not so much memory.
    """
    if device.type == "cpu":
        return HostArena(num_rows, record_bytes, capacity, pinned=pinned)
    return DeviceArena(num_rows, record_bytes, device)


class HostArena:
    """Rows in main memory, each beginning on a page so that disks write into them directly.

    Addresses are taken for ``capacity`` rows and memory for those that there are: a row that is given back is zeros.

    Args:
        pinned: a GPU is to copy from it by itself, without the CPU. Then it neither grows nor is given back.

    Raises:
        OSError, RuntimeError: there is not so much memory, or it cannot be pinned.
    """

    is_in_place = True

    def __init__(self, num_rows: int, record_bytes: int, capacity: int, *, pinned: bool = False) -> None:
        assert record_bytes % PAGE == 0, record_bytes
        if pinned:
            capacity = num_rows
        capacity = max(num_rows, capacity)
        try:
            memory = addresses(capacity * record_bytes)
        except (OSError, OverflowError):  # a limit on addresses: what is asked for now may still fit
            capacity = num_rows
            memory = addresses(capacity * record_bytes)
        self._memory, self._size, self._rows, self._capacity = memory, record_bytes, num_rows, capacity
        self._view = memoryview(memory)
        self.rows_RB = torch.frombuffer(memory, dtype=torch.uint8).view(capacity, record_bytes)
        self._favour(0, num_rows)
        self.is_pinned = pinned
        if pinned:
            self._pin()

    @property
    def num_rows(self) -> int:
        return self._rows

    @property
    def capacity(self) -> int:
        return self._capacity

    def buffer(self, row: int) -> memoryview:
        assert 0 <= row < self._rows, row
        return self._view[row * self._size : (row + 1) * self._size]

    def landed(self, row: int) -> None:
        pass

    def used(self) -> None:
        pass

    def grow(self, num_rows: int) -> None:
        assert num_rows <= self._capacity, (num_rows, self._capacity)
        if num_rows > self._rows:
            self._favour(self._rows, num_rows)
            self._rows = num_rows

    def give_back(self, row: int) -> None:
        if not self.is_pinned:  # a GPU goes on reading from the old pages
            give_back(self._memory, row * self._size, (row + 1) * self._size)

    def close(self) -> None:
        if self.is_pinned:
            self.is_pinned = False
            _cuda().cudaHostUnregister(self.rows_RB.data_ptr())

    def _pin(self) -> None:
        num_bytes = self._rows * self._size
        error = int(_cuda().cudaHostRegister(self.rows_RB.data_ptr(), num_bytes, 0))
        if error:
            raise RuntimeError(f"{num_bytes} bytes of main memory cannot be pinned: CUDA error {error}")

    def _favour(self, first: int, end: int) -> None:
        """Large pages for rows ``[first, end)``, as one record is hundreds of small ones; all of them now, else the
        first prompt would wait for each to be made."""
        favour(self._memory, first * self._size, end * self._size, now=True)


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class _Pinned(threading.local):
    """One reader thread's buffer in main memory, which a GPU copies from by itself, and its stream."""

    def __init__(self) -> None:
        self.record_B: Tensor | None = None
        self.stream: torch.cuda.Stream | None = None


class DeviceArena:
    """Rows on a GPU, filled by way of pinned main memory: one record for each thread that reads.

    Or from rows that are in main memory already (``put``).
    """

    is_in_place = False

    def __init__(self, num_rows: int, record_bytes: int, device: torch.device) -> None:
        self._device, self._size = device, record_bytes
        self.rows_RB = torch.zeros((num_rows, record_bytes), dtype=torch.uint8, device=device)
        self._here = _Pinned()
        self._lock = threading.Lock()
        self._readers: dict[int, torch.cuda.Event] = {}
        """By stream, the end of the last kernels launched there that read rows."""
        self._is_cuda = device.type == "cuda"

    @property
    def num_rows(self) -> int:
        return len(self.rows_RB)

    @property
    def capacity(self) -> int:
        """No addresses are kept free here: rows are made anew, as far as there is memory."""
        return 1 << 31

    def buffer(self, row: int) -> memoryview:
        here = self._here
        if here.record_B is None:
            here.record_B = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._is_cuda)
        view: memoryview = here.record_B.numpy().data
        return view

    def landed(self, row: int) -> None:
        record_B = self._here.record_B
        assert record_B is not None
        self.put(row, record_B)

    @torch.inference_mode()
    def put(self, row: int, record_B: Tensor) -> None:
        """Copy a record from main memory, behind all kernels that may still read what was in the row; kernels may read
        it when this returns."""
        if not self._is_cuda:
            self.rows_RB[row].copy_(record_B)
            return
        here = self._here
        if here.stream is None:
            here.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with self._lock:
            ends = list(self._readers.values())
        for end in ends:
            here.stream.wait_event(end)
        with torch.cuda.stream(here.stream):
            self.rows_RB[row].copy_(record_B, non_blocking=True)
        here.stream.synchronize()

    def used(self) -> None:
        if not self._is_cuda:
            return
        stream = torch.cuda.current_stream(self._device)
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record(stream)
        with self._lock:
            self._readers[stream.cuda_stream] = end

    @torch.inference_mode()
    def grow(self, num_rows: int) -> None:
        if num_rows <= len(self.rows_RB):
            return
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
        rows_RB = torch.zeros((num_rows, self._size), dtype=torch.uint8, device=self._device)
        rows_RB[: len(self.rows_RB)].copy_(self.rows_RB)
        self.rows_RB = rows_RB

    def give_back(self, row: int) -> None:
        """Rows are one piece of memory here, which keeps its size."""

    def close(self) -> None:
        pass
