"""Which idle block is evicted next: READY blocks that nobody refers to, in the order in which they go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol


class IdleBlocks(Protocol):
    """An order over blocks. The pool adds, removes and takes; every block is in it at most once."""

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...

    def __iter__(self) -> Iterator[int]: ...

    def add(self, block: int, key: bytes) -> None:
        """It has just lost its last reference."""
        ...

    def discard(self, block: int) -> None:
        """It is referred to again, or its content is of no use any more; it may not be there."""
        ...

    def demote(self, block: int) -> None:
        """It goes before all others, those demoted earlier included."""
        ...

    def pop(self, now: float) -> int:
        """Take out the one that goes first; there must be one."""
        ...

    def put_back(self, block: int, key: bytes) -> None:
        """It was taken out last, and stays after all: where it was."""
        ...


class LeastRecent:
    """By the time of the last use."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def add(self, block: int, key: bytes) -> None:
        self._blocks[block] = None

    def discard(self, block: int) -> None:
        self._blocks.pop(block, None)

    def demote(self, block: int) -> None:
        self._blocks.move_to_end(block, last=False)

    def pop(self, now: float) -> int:
        return self._blocks.popitem(last=False)[0]

    def put_back(self, block: int, key: bytes) -> None:
        self._blocks[block] = None
        self._blocks.move_to_end(block, last=False)
