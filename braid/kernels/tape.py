"""A row of native kernel calls, recorded once and made again in one foreign call.

A decode step of a small model is hundreds of kernels of some ten microseconds each; called one by one from Python,
the calls cost as much as the kernels. What is recorded are addresses: the row may be made again as long as every tensor
that took part is alive and in place, with new numbers in those that are its inputs (the idea of CUDA graphs).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from struct import Struct
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from braid.kernels.loader import Call, Library

_REPLAY = Struct("6q").pack
_CALL = Struct("3q")
_ALLOCATIONS = frozenset(("empty", "empty_like", "new_empty"))
_READS = frozenset(
    ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__setitem__")
)
"""Calls that look at numbers (or set them) without a tensor as their result."""


class UnrecordableError(Exception):
    """Something other than a native kernel computed while a tape was recorded; the text names it."""


class _Watch(TorchFunctionMode):
    """Lets torch allocate and make views, keeps what it allocates alive, and refuses all that computes.

    (A dispatch mode would see a level deeper, but its first use imports a compiler for two seconds.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name in _ALLOCATIONS:
            self.kept.append(out)
        elif name in _READS or _writes(name, kwargs or {}) or not _same_storage(args, out):
            raise UnrecordableError(f"{name} computes outside the native kernels")
        return out


def _writes(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Is this an in-place operation? Their names end in one underscore, or are those of ``+=`` and the like."""
    augmented = name.startswith("__i") and name.removeprefix("__i") in (
        "add__",
        "sub__",
        "mul__",
        "truediv__",
    )
    return "out" in kwargs or augmented or (name.endswith("_") and not name.endswith("__"))


def _same_storage(args: tuple[Any, ...], out: Any) -> bool:
    """Are all tensors among an operation's results views of its first argument?"""
    tensors = [x for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, Tensor)]
    source = args[0] if args else None
    return not tensors or (
        isinstance(source, Tensor)
        and all(x.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() for x in tensors)
    )


class Tape:
    """Recorded calls, ready to be made again from any thread, by one thread at a time."""

    def __init__(self, library: Library, calls: list[Call], kept: list[Tensor]) -> None:
        self._library, self._kept = library, kept
        self._count = len(calls)
        self._blocks = [ctypes.create_string_buffer(call.arguments, len(call.arguments)) for call in calls]
        rows = zip(calls, self._blocks, strict=True)
        table = b"".join(
            _CALL.pack(call.address, ctypes.addressof(block), call.takes_scratch) for call, block in rows
        )
        self._table = ctypes.create_string_buffer(table, max(len(table), 1))
        self._stopped_at = ctypes.c_int64(0)

    @property
    def num_calls(self) -> int:
        return self._count

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors that the recorded calls write."""
        return sum(tensor.nbytes for tensor in self._kept)

    def replay(self) -> None:
        """Make the calls again.

        Raises:
            IndexError: an input names a block or slot that does not exist.
        """
        first, table, stopped = 0, ctypes.addressof(self._table), ctypes.addressof(self._stopped_at)
        scratch, replay = self._library.scratch, self._library.replay
        while status := replay(_REPLAY(table, first, self._count, scratch.address, scratch.size, stopped)):
            if status < 0:
                raise IndexError("kernel input out of range: a block, slot or expert id does not exist")
            scratch.grow(status)
            first = self._stopped_at.value


@contextmanager
def _recording(library: Library, calls: list[Call]) -> Iterator[None]:
    library.recorder.calls = calls
    try:
        yield
    finally:
        library.recorder.calls = None


def record(library: Library, compute: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
    """Run ``compute`` once, and return the tape that runs it again and the tensor that each replay fills.

    Raises:
        UnrecordableError: ``compute`` used an operation that is not a native kernel.
    """
    calls: list[Call] = []
    with _recording(library, calls), _Watch() as watch:
        result = compute()
    return Tape(library, _without_retries(calls), watch.kept), result


def _without_retries(calls: list[Call]) -> list[Call]:
    """A call that first asked for more scratch was made twice in a row, alike but for the scratch."""
    kept: list[Call] = []
    for call in calls:
        again = kept and kept[-1].takes_scratch and kept[-1].address == call.address
        if again and kept[-1].arguments[16:] == call.arguments[16:]:
            kept.pop()
        kept.append(call)
    return kept
