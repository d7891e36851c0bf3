"""How far a policy was from the best that could have been evicted: a log of turns, replayed at its own timing.

The replay keeps what idle turns have left in a pool of any size, by two rules: the least recently used block goes first
(LRU), or the one whose next use is farthest (Belady, IBM Systems Journal 5, 1966). A block is of use only if all before
it are there. Blocks form a tree and every turn uses a path from the root, so a block's next use is never before that of
the blocks that it stands on; with ties broken at the deeper end, Belady's rule keeps prefixes whole and stays optimal.
That holds for the given timing: in a running system, hits change when turns come.

Blocks of turns that run stay, however small the pool; what they leave of it is for idle ones. Prompts count from their
start, answers from their end.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from braid.sched.event_log import VERSION

ROOT = 0


class LogError(ValueError):
    """A line that is none of a log of turns."""


@dataclass(slots=True)
class BlockTree:
    """Runs of blocks that no turn tells apart. A run ends ``ends[run]`` blocks from the beginning of its chain and
    stands on ``parents[run]``."""

    parents: list[int] = field(default_factory=lambda: [-1])
    ends: list[int] = field(default_factory=lambda: [0])

    def add(self, parent: int, num_blocks: int) -> int:
        """A run of blocks that nobody had before; ``parent`` itself if there are none."""
        if num_blocks <= 0:
            return parent
        self.parents.append(parent)
        self.ends.append(self.ends[parent] + num_blocks)
        return len(self.parents) - 1

    def cut(self, run: int, depth: int) -> int:
        """The run that ends after the first ``depth`` blocks of the chain that ends with ``run``.

        Whoever refers to a run that is divided refers to its end, which stays.
        """
        while run != ROOT and self.ends[self.parents[run]] >= depth:
            run = self.parents[run]
        if self.ends[run] <= depth:
            return run
        self.parents.append(self.parents[run])
        self.ends.append(depth)
        self.parents[run] = len(self.parents) - 1
        return self.parents[run]

    @property
    def num_blocks(self) -> int:
        return sum(map(self.length, range(len(self.ends))))

    def length(self, run: int) -> int:
        return self.ends[run] - self.ends[self.parents[run]] if run != ROOT else 0

    def path(self, run: int) -> list[int]:
        """From the beginning of the chain."""
        runs = []
        while run != ROOT:
            runs.append(run)
            run = self.parents[run]
        return runs[::-1]


class Event(NamedTuple):
    """A turn starts or stops, using the chain that ends with ``tip``. Of starts only, in tokens: ``num_tokens`` that it
    wanted, ``num_found`` on its engine's device, ``num_reloaded`` from the tiers below."""

    turn: int
    tip: int
    is_start: bool
    num_tokens: int = 0
    num_found: int = 0
    num_reloaded: int = 0


@dataclass(slots=True)
class TurnLog:
    """One life of a scheduler: its blocks, and who used them in which order."""

    block_size: int
    num_blocks: int
    policy: str
    tree: BlockTree = field(default_factory=BlockTree)
    events: list[Event] = field(default_factory=list)
    num_unknown: int = 0
    """Lines that refer to turns of which there is no line."""
    num_dropped: int = 0
    """Events that the writer could not take."""
    _tips: dict[int, int] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any]) -> None:
        """One line but the first."""
        kind = line["event"]
        if kind == "dropped":
            self.num_dropped += int(line["lines"])
        if kind not in ("start", "stop"):
            return
        turn, blocks = int(line["turn"]), int(line["blocks"])
        tip = self.tree.add(*self._base(line["like"], blocks))
        self._tips[turn] = tip
        if kind == "start":
            origins = line["origins"]
            reloaded = int(origins["host_reload"]) + int(origins["disk_reload"])
            found = int(line["found"]) * self.block_size - reloaded
            self.events.append(Event(turn, tip, True, int(line["tokens"]), found, reloaded))
        else:
            self.events.append(Event(turn, tip, False))

    def _base(self, like: tuple[int, int] | None, blocks: int) -> tuple[int, int]:
        """What the line's chain stands on, and how many blocks are new."""
        if like is None:
            return ROOT, blocks
        turn, shared = like
        if turn not in self._tips or not 0 <= shared <= blocks:
            self.num_unknown += 1
            return ROOT, blocks
        base = self.tree.cut(self._tips[turn], shared)
        return base, blocks - self.tree.ends[base]


def read_logs(lines: Iterable[Mapping[str, Any]]) -> list[TurnLog]:
    """One log per life of the engine that wrote the lines.

    Raises:
        LogError: a line is not what ``braid.sched.event_log`` says; with its number, from 1.
    """
    logs: list[TurnLog] = []
    for number, line in enumerate(lines, 1):
        try:
            if line["event"] == "log":
                logs.append(_begin(line))
            elif logs:
                logs[-1].take(line)
            else:
                raise LogError("does not begin a log")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise LogError(f"line {number} {reason}") from None
    return logs


def _begin(line: Mapping[str, Any]) -> TurnLog:
    if line["v"] != VERSION:
        raise LogError(f"is of version {line['v']!r}; this reads version {VERSION}")
    size, num_blocks = int(line["block_size"]), int(line["num_blocks"])
    if size < 1 or num_blocks < 1:
        raise LogError(f"has block_size {size} and num_blocks {num_blocks}; both must be >= 1")
    return TurnLog(size, num_blocks, str(line["policy"]))


class Uses:
    """When a run of blocks is used next: places in the order of events."""

    def __init__(self, log: TurnLog) -> None:
        self._starts: dict[int, list[int]] = {}
        self._never = len(log.events)
        for place, event in enumerate(log.events):
            if event.is_start:
                for run in log.tree.path(event.tip):
                    self._starts.setdefault(run, []).append(place)

    def after(self, run: int, place: int) -> int:
        starts = self._starts.get(run, ())
        index = bisect_right(starts, place)
        return starts[index] if index < len(starts) else self._never


class Idle(Protocol):
    """Runs that no running turn has, in the order in which they are evicted."""

    def add(self, run: int, place: int) -> None: ...

    def discard(self, run: int) -> None: ...

    def first(self) -> int:
        """Which loses its last block next; there must be one."""
        ...


class LeastRecent:
    def __init__(self) -> None:
        self._runs: OrderedDict[int, None] = OrderedDict()

    def add(self, run: int, place: int) -> None:
        self._runs[run] = None

    def discard(self, run: int) -> None:
        self._runs.pop(run, None)

    def first(self) -> int:
        return next(iter(self._runs))


class Farthest:
    """By the next use; among equals the deepest."""

    def __init__(self, uses: Uses, tree: BlockTree) -> None:
        self._uses, self._ends = uses, tree.ends
        self._heap: list[tuple[int, int, int]] = []
        self._next: dict[int, int] = {}

    def add(self, run: int, place: int) -> None:
        after = self._next[run] = self._uses.after(run, place)
        heapq.heappush(self._heap, (-after, -self._ends[run], run))

    def discard(self, run: int) -> None:
        self._next.pop(run, None)

    def first(self) -> int:
        while True:
            after, _, run = self._heap[0]
            if self._next.get(run) == -after:
                return run
            heapq.heappop(self._heap)


class Hits(NamedTuple):
    """Tokens that turns wanted when they started, and that were there."""

    wanted: int
    found: int

    @property
    def rate(self) -> float:
        """0 where nothing was wanted."""
        return self.found / self.wanted if self.wanted else 0.0


class _Replay:
    """One pool, one rule."""

    def __init__(self, log: TurnLog, num_blocks: int, idle: Idle) -> None:
        self._log, self._tree, self._num_blocks = log, log.tree, num_blocks
        self._idle = idle
        num_runs = len(log.tree.parents)
        self._there = [0] * num_runs
        """Of each run, how many of its blocks have content, from its beginning."""
        self._users = [0] * num_runs
        """A run that has any takes its whole length."""
        self._num_used = self._num_idle = 0
        self._paths: dict[int, list[int]] = {}

    def run(self) -> Hits:
        wanted = found = 0
        for place, event in enumerate(self._log.events):
            path = self._tree.path(event.tip)
            if event.is_start:
                wanted += event.num_tokens
                found += self._num_there(path) * self._log.block_size
                self._use(path)
                self._release(self._paths.get(event.turn, []), place)
                self._paths[event.turn] = path
            else:
                self._use(path)
                for run in path:
                    self._there[run] = self._tree.length(run)
                self._release(self._paths.pop(event.turn, []), place)
                self._release(path, place)
            self._shrink()
        return Hits(wanted, found)

    def _num_there(self, path: list[int]) -> int:
        """What a running turn has is there, or will be as soon as it is needed."""
        found = 0
        for run in path:
            length = self._tree.length(run)
            there = length if self._users[run] else self._there[run]
            found += there
            if there < length:
                break
        return found

    def _use(self, path: list[int]) -> None:
        for run in path:
            self._users[run] += 1
            if self._users[run] == 1:
                self._idle.discard(run)
                self._num_idle -= self._there[run]
                self._num_used += self._tree.length(run)

    def _release(self, path: list[int], place: int) -> None:
        """The deepest first: a chain is of no use without its beginning."""
        for run in reversed(path):
            self._users[run] -= 1
            if self._users[run]:
                continue
            self._num_used -= self._tree.length(run)
            if self._there[run]:
                self._num_idle += self._there[run]
                self._idle.add(run, place)

    def _shrink(self) -> None:
        excess = min(self._num_used + self._num_idle - self._num_blocks, self._num_idle)
        while excess > 0:
            run = self._idle.first()
            gone = min(excess, self._there[run])
            self._there[run] -= gone
            self._num_idle -= gone
            excess -= gone
            if not self._there[run]:
                self._idle.discard(run)


def lru(log: TurnLog, num_blocks: int) -> Hits:
    """Hits with a pool of ``num_blocks``, the least recently used block evicted first."""
    return _Replay(log, num_blocks, LeastRecent()).run()


def belady(log: TurnLog, num_blocks: int, uses: Uses | None = None) -> Hits:
    """The most hits that any rule of eviction could have had.

    Args:
        uses: of ``log``, where several sizes are asked for.
    """
    return _Replay(log, num_blocks, Farthest(uses or Uses(log), log.tree)).run()


def logged(log: TurnLog) -> Hits:
    """What the turns found on their own engine's device."""
    return Hits(sum(event.num_tokens for event in log.events), sum(event.num_found for event in log.events))


def reloaded(log: TurnLog) -> Hits:
    """What the turns found in the tiers below; no rule of eviction for the device has any of it."""
    return logged(log)._replace(found=sum(event.num_reloaded for event in log.events))


class Regret(NamedTuple):
    """Hits with a pool of ``num_blocks``.

    Args:
        logged, reloaded: what the logs' own policy found on the device, and in the tiers below; None where its pool
            had another size.
        endless: with a pool where nothing is ever evicted.
    """

    num_blocks: int
    lru: Hits
    logged: Hits | None
    reloaded: Hits | None
    best: Hits
    endless: Hits


def regrets(logs: Sequence[TurnLog], sizes: Sequence[int]) -> list[Regret]:
    """One per size, over all logs together; without ``sizes`` that of the first log."""
    uses = [Uses(log) for log in logs]
    endless = _sum(lru(log, log.tree.num_blocks) for log in logs)
    rows = []
    for size in sizes or [log.num_blocks for log in logs[:1]]:
        is_own = all(log.num_blocks == size for log in logs)
        row = Regret(
            num_blocks=size,
            lru=_sum(lru(log, size) for log in logs),
            logged=_sum(map(logged, logs)) if is_own else None,
            reloaded=_sum(map(reloaded, logs)) if is_own else None,
            best=_sum(belady(log, size, known) for log, known in zip(logs, uses, strict=True)),
            endless=endless,
        )
        rows.append(row)
    return rows


def _sum(hits: Iterable[Hits]) -> Hits:
    pairs = list(hits)
    return Hits(sum(hit.wanted for hit in pairs), sum(hit.found for hit in pairs))
