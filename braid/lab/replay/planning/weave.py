"""Programs whose calls overlap, or that have sub-agents: who waits for whom in one family of programs.

A sub-agent is one stretch of time in its parent's life. Both are walked through in order of time; what had ended by
then, and is not awaited by something else that had, is what the next request waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from braid.lab.replay.planning.graph import Graph, Ints

_FOREVER = float("inf")


@dataclass(slots=True)
class Program:
    """A program of a family, its rows in order of time. Lists over rows, see ``graph._with_clocks``; ``end`` equals
    ``begin`` where it is unknown (``open``). ``parent`` is -1 for none."""

    number: int
    parent: int
    rows: list[int]
    begin: list[float]
    end: list[float]
    gap: list[float | None]
    open: list[bool]
    began: list[float | None]
    absolute: list[bool]
    recorded: list[bool]
    zero_s: float = 0.0
    adrift: bool = False
    children: list[Program] = field(default_factory=list)
    items: list[_Stretch] = field(default_factory=list)
    hangs_on: list[_Stretch] = field(default_factory=list)
    first: list[int] = field(default_factory=list)

    def move(self, by_s: float) -> None:
        """Put its clock onto its parent's."""
        self.begin = [time + by_s for time in self.begin]
        self.end = [time + by_s for time in self.end]
        self.zero_s += by_s


class _Stretch(NamedTuple):
    """A request (``at`` is its place in its program) or a whole sub-agent. ``last`` are the rows that end it."""

    order: int
    begin: float
    end: float
    last: tuple[int, ...]
    at: int = -1
    child: Program | None = None


class _Front:
    """What had ended by a time, less what others of that waited for. Times asked for must not fall."""

    def __init__(self, quantum_s: float) -> None:
        self._quantum_s = quantum_s
        self._held: list[_Stretch] = []

    def add(self, stretch: _Stretch) -> None:
        """In order of begin."""
        self._held.append(stretch)

    def at(self, time: float) -> list[_Stretch]:
        ended = [held for held in self._held if held.end <= time + self._quantum_s]
        if not ended:
            return []
        last = ended[-1]
        last_request = next((held for held in reversed(ended) if held.child is None), None)
        found, gone = [], set()
        for held in ended:
            # A sub-agent's start waits for its parent's turns, not for other sub-agents.
            by = last if held.child is None else last_request
            if by is not None and by.order > held.order and held.end <= by.begin + self._quantum_s:
                gone.add(held.order)
            else:
                found.append(held)
        if gone:
            self._held = [held for held in self._held if held.order not in gone]
        return found


def weave(programs: list[Program], graph: Graph, place: Ints, quantum_s: float) -> list[tuple[int, int]]:
    """Pairs of (waiter, awaited) rows of one family. Fills in its rows of ``graph`` (times, delays, flags), and their
    ``place`` in an order in which nothing stands before what it waits for."""
    downwards = _linked(programs)
    for program in downwards:
        for child in program.children:
            _put_onto(program, child)
    edges: list[tuple[int, int]] = []
    hulls: dict[int, _Stretch] = {}
    for program in reversed(downwards):
        hulls[program.number] = _walk(program, hulls, graph, edges, quantum_s)
    for program in downwards:
        _hang(program, graph, edges)
        _write_times(program, graph)
    for number, row in enumerate(_flat([program for program in downwards if program.parent < 0])):
        place[row] = number
    edges.sort(key=lambda edge: place[edge[0]])
    for waiter, awaited in edges:
        # A grid's tolerance lets a request begin before what it waits for; in the plan it does not.
        graph.begin_s[waiter] = max(graph.begin_s[waiter], graph.begin_s[awaited])
        graph.end_s[waiter] = max(graph.end_s[waiter], graph.begin_s[waiter])
    return edges


def _linked(programs: list[Program]) -> list[Program]:
    """Parents before their children."""
    by_number = {program.number: program for program in programs}
    for program in programs:
        if program.parent >= 0:
            by_number[program.parent].children.append(program)
    found = [program for program in programs if program.parent < 0]
    for program in found:
        found.extend(program.children)
    return found


def _put_onto(parent: Program, child: Program) -> None:
    """The child's times onto its parent's clock: by the trace's own, by its stated start, or else from the end of the
    parent's last turn that stands before it in the file."""
    if child.absolute[0] and parent.absolute[0]:
        return
    if child.began[0] is not None and not child.absolute[0]:
        child.move(parent.zero_s + child.began[0])
    else:
        above = [end for row, end in zip(parent.rows, parent.end, strict=True) if row < min(child.rows)]
        child.move((above[-1] if above else parent.begin[0]) - child.begin[0])
        child.adrift = True
        child.recorded = [False] * len(child.rows)
    child.absolute = [parent.absolute[0]] * len(child.rows)
    if not parent.recorded[0]:
        child.recorded = [False] * len(child.rows)


def _walk(
    program: Program,
    hulls: dict[int, _Stretch],
    graph: Graph,
    edges: list[tuple[int, int]],
    quantum_s: float,
) -> _Stretch:
    """Waits inside a program, its sub-agents seen as stretches; its own stretch for its parent."""
    requests = [
        _Stretch(0, begin, end, (row,), at)
        for at, (row, begin, end) in enumerate(zip(program.rows, program.begin, program.end, strict=True))
    ]
    stretches = [*requests, *(hulls[child.number] for child in program.children)]
    stretches.sort(key=lambda one: (one.begin, one.child is not None))
    program.items = [one._replace(order=order) for order, one in enumerate(stretches)]
    everything, turns = _Front(quantum_s), _Front(quantum_s)
    for one in program.items:
        if one.child is not None:
            one.child.hangs_on = turns.at(one.begin)
        else:
            _wait(program, one, everything.at(one.begin), graph, edges)
            turns.add(one)
        everything.add(one)
    last = tuple(row for one in everything.at(_FOREVER) for row in one.last)
    begin, end = min(one.begin for one in program.items), max(one.end for one in program.items)
    return _Stretch(0, begin, end, last, child=program)


def _wait(
    program: Program, one: _Stretch, ended: list[_Stretch], graph: Graph, edges: list[tuple[int, int]]
) -> None:
    row, gap = program.rows[one.at], program.gap[one.at]
    if not ended:
        program.first.append(one.at)
        return
    edges.extend((row, awaited) for stretch in ended for awaited in stretch.last)
    latest = max(ended, key=lambda stretch: stretch.end)
    after_turn = len(ended) == 1 and latest.child is None and latest.at == one.at - 1
    if after_turn and gap is not None:
        graph.delay_s[row] = max(gap, 0.0)
        return
    graph.delay_s[row] = max(one.begin - latest.end, 0.0)
    graph.whole_steps[row] = latest.child is None and program.open[latest.at]


def _hang(program: Program, graph: Graph, edges: list[tuple[int, int]]) -> None:
    """A sub-agent's first requests wait for its parent's turns; where none had ended, for what its parent waited."""
    for child in program.children:
        if not child.hangs_on:
            child.hangs_on = program.hangs_on
    if not program.hangs_on:
        return
    ended = max(stretch.end for stretch in program.hangs_on)
    for at in program.first:
        row = program.rows[at]
        edges.extend((row, awaited) for stretch in program.hangs_on for awaited in stretch.last)
        graph.delay_s[row] = max(program.begin[at] - ended, 0.0)


def _write_times(program: Program, graph: Graph) -> None:
    graph.begin_s[program.rows], graph.end_s[program.rows] = program.begin, program.end
    graph.clocked[program.rows], graph.recorded[program.rows] = program.absolute, program.recorded
    graph.adrift[program.rows[0]] = program.adrift


def _flat(tops: list[Program]) -> list[int]:
    """Rows in order of time, each sub-agent's in one piece where it began."""
    found: list[int] = []
    waiting = [one for top in reversed(tops) for one in reversed(top.items)]
    while waiting:
        one = waiting.pop()
        if one.child is None:
            found.extend(one.last)
        else:
            waiting.extend(reversed(one.child.items))
    return found
