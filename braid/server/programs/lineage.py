"""Recognising a program by its prompts: the prompt of a next turn continues the end of an earlier one.

A finished turn leaves two points behind: where its prompt ended, and where its output ended. A point is known by the
hash of all tokens before it. The output's point is the longer one and tells branches apart; the prompt's point still
holds where a template shows an earlier answer otherwise than the model wrote it (thoughts left out, arguments
formatted anew). Neither is reached by a prompt that shares no more than a system text with the turn.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

MAX_POINTS = 8192
"""Points remembered for one owner; the longest unused goes first."""
_MAX_NODES = 8
"""Turns that may end at one point: the same prompt sent several times."""
_DIGEST_BYTES = 16
_TOKEN_BYTES = 4

Point = tuple[int, bytes]
"""A length in tokens and the hash of that many."""


class Node:
    """The end of one turn of ``program``."""

    __slots__ = ("cache_key", "continued", "pending", "program")

    def __init__(self, program: str, cache_key: str | None) -> None:
        self.program = program
        self.cache_key = cache_key
        self.continued = False
        """A turn that continues this one has finished: whatever continues it again is a fork."""
        self.pending = 0
        """Turns under way that continue this one."""


class Prompt(NamedTuple):
    """A prompt as lineage sees it: its own point, and the points that earlier turns may have left in it."""

    length: int
    own: Point
    earlier: tuple[Point, ...]
    state: blake2b
    """All of the prompt, ready for the output to follow."""


class Lineage:
    """The points of one owner's finished turns."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._points: OrderedDict[Point, list[Node]] = OrderedDict()
        self._per_length: Counter[int] = Counter()
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._points)

    def prompt(self, token_ids: Sequence[int], open_tokens: int) -> Prompt:
        """Hash a prompt once, up to each length that matters. May run in another thread than the rest.

        Args:
            open_tokens: how many of the last tokens only open the answer; the next prompt may open it otherwise.
        """
        data = memoryview(array("I", token_ids)).cast("B")
        end = max(1, len(token_ids) - open_tokens)
        state = blake2b(digest_size=_DIGEST_BYTES)
        lengths = self._lengths.copy()
        points = list(_points(state, data, [*lengths[: bisect_left(lengths, end)], end]))
        state.update(data[end * _TOKEN_BYTES :])
        return Prompt(len(token_ids), points[-1], tuple(points[:-1]), state)

    def match(self, prompt: Prompt, cache_key: str | None) -> Node | None:
        """The turn that a prompt continues: of the longest point, one that nobody continues yet if there is one.

        Args:
            cache_key: leaves only turns that came with this key; None leaves all.
        """
        for point in reversed(prompt.earlier):
            nodes = self._points.get(point, ())
            able = [node for node in nodes if cache_key is None or node.cache_key == cache_key]
            if able:
                self._points.move_to_end(point)
                return min(reversed(able), key=lambda node: (node.continued, node.pending))
        return None

    def add(self, node: Node, prompt: Prompt, outputs: Sequence[Sequence[int]], block_size: int) -> None:
        """Remember the end of a turn: of its prompt, and of each output down to the last full block."""
        self._remember(prompt.own, node)
        for output in outputs:
            end = (prompt.length + len(output)) // block_size * block_size
            if end > prompt.length:
                state = prompt.state.copy()
                state.update(array("I", output[: end - prompt.length]).tobytes())
                self._remember((end, state.digest()), node)

    def _remember(self, point: Point, node: Node) -> None:
        nodes = self._points.setdefault(point, [])
        if not nodes:
            length = point[0]
            self._per_length[length] += 1
            if self._per_length[length] == 1:
                insort(self._lengths, length)
        nodes.append(node)
        del nodes[:-_MAX_NODES]
        self._points.move_to_end(point)
        if len(self._points) > self._max_points:
            self._drop(next(iter(self._points)))

    def _drop(self, point: Point) -> None:
        del self._points[point]
        length = point[0]
        self._per_length[length] -= 1
        if not self._per_length[length]:
            del self._per_length[length]
            del self._lengths[bisect_left(self._lengths, length)]


def _points(state: blake2b, data: memoryview, lengths: Sequence[int]) -> Iterator[Point]:
    start = 0
    for length in lengths:
        state.update(data[start * _TOKEN_BYTES : length * _TOKEN_BYTES])
        yield length, state.digest()
        start = length
