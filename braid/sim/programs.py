"""Programs to simulate: turns with lengths, gaps and what their prompts share; and which of them start when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import NamedTuple

from braid.core.errors import InvalidParameterError
from braid.core.program import ProgramRef, RetainIntent
from braid.policy.agents.program import Finish
from braid.sim.clients import Clients
from braid.sim.grain import units
from braid.sim.run import Arrival

PLAIN = Clients()


class Text(NamedTuple):
    """A stretch of tokens as pieces of endless streams: ``tokens[i]`` tokens of stream ``streams[i]``.

    Streams are numbered within a family. Two texts are equal as far as their pieces are.
    """

    streams: Sequence[int]
    tokens: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One request of a family.

    Args:
        member: whose turn it is: a place in ``Family.parents``.
        after: places of the turns that must have ended before it comes, all before it; empty for a first one.
        delay_s: from the last of these ends, or from the family's start.
        reply: what it answers, ``num_output`` tokens; the next prompt may hold it.
        finish, tool: how the answer ends.
    """

    member: int
    after: tuple[int, ...]
    delay_s: float
    prompt: Text
    num_output: int
    reply: Text
    finish: Finish
    tool: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A program with its sub-agents, in order of waiting. ``parents``: of every member the place of its parent, -1 for
    the root, which is the first. ``num_streams`` is above every stream's number."""

    name: str
    turns: tuple[Turn, ...]
    parents: tuple[int, ...]
    num_streams: int


class Start(NamedTuple):
    time: float
    family: Family


def draw_starts(families: Sequence[Family], num: int, rate: float, seed: int) -> list[Start]:
    """``num`` families by chance, none twice before all have come, with exponential gaps of mean ``1 / rate``.

    Raises:
        InvalidParameterError: there are no families, or ``num`` or ``rate`` is not above 0.
    """
    if not families:
        raise InvalidParameterError("there is no program to simulate", param="trace")
    for name, value in (("programs", num), ("rate", rate)):
        if not value > 0:
            raise InvalidParameterError(f"{name} must be above 0, got {value!r}", param=name)
    chance, clock = Random(seed), Random(f"starts {seed}")
    bag: list[Family] = []
    time = 0.0
    starts = []
    for _ in range(num):
        if not bag:
            bag = chance.sample(list(families), len(families))
        time += clock.expovariate(rate)
        starts.append(Start(time, bag.pop()))
    return starts


class Place(NamedTuple):
    """Which start an arrival belongs to, and which of its family's turns it is."""

    start: int
    turn: int


def arrivals_of(
    starts: Sequence[Start], *, grain: int, clients: Clients = PLAIN, seed: int = 0
) -> tuple[list[Arrival], list[Place]]:
    """The turns of all families, in units of ``grain`` tokens, and where each comes from.

    Args:
        clients: what they say of their programs.
        seed: of what they say by chance.
    """
    chance = Random(f"clients {seed}")
    arrivals: list[Arrival] = []
    places: list[Place] = []
    offset = 0
    for number, start in enumerate(starts):
        first = len(arrivals)
        says = list(_says(number, start.family, clients, chance))
        for place, (turn, (ref, intent)) in enumerate(zip(start.family.turns, says, strict=True)):
            head = turn.prompt.num_tokens
            arrivals.append(
                Arrival(
                    time=start.time + turn.delay_s,
                    prompt=partial(_tokens, turn.prompt, 0, grain, offset),
                    num_output_tokens=max(1, units(head + turn.num_output, grain) - units(head, grain)),
                    after=tuple(first + index for index in turn.after),
                    delay=turn.delay_s,
                    reply=partial(_tokens, turn.reply, head, grain, offset),
                    program=ref,
                    intent=intent,
                    ending=(turn.finish, turn.tool),
                )
            )
            places.append(Place(number, place))
        offset += start.family.num_streams
    return arrivals, places


def _says(
    number: int, family: Family, clients: Clients, chance: Random
) -> Iterator[tuple[ProgramRef | None, RetainIntent | None]]:
    """Of every turn, whose it is and when the next one is to come, as far as its client says."""
    if chance.random() < clients.anonymous:
        yield from [(None, None)] * len(family.turns)
        return
    for turn, gap in zip(family.turns, _gaps(family), strict=True):
        parent = family.parents[turn.member]
        ref = ProgramRef(
            owner="",
            program=f"{number}.{turn.member}",
            parent=None if parent < 0 else f"{number}.{parent}",
            final=clients.say_final and gap is None,
        )
        intent = None if clients.hints is None or gap is None else clients.hints.said(gap, chance)
        yield ref, intent


def _gaps(family: Family) -> list[float | None]:
    """What passes after every turn before its member's next one; None after the last."""
    gaps: list[float | None] = [None] * len(family.turns)
    latest: dict[int, int] = {}
    for place, turn in enumerate(family.turns):
        before = latest.get(turn.member)
        if before is not None:
            gaps[before] = turn.delay_s
        latest[turn.member] = place
    return gaps


def _tokens(text: Text, begin: int, grain: int, offset: int) -> list[int]:
    """A text that begins at token ``begin``, one number for each unit."""
    made: list[int] = []
    end, done = begin, units(begin, grain)
    for stream, tokens in zip(text.streams, text.tokens, strict=True):
        end += tokens
        upto = units(end, grain)
        made += [offset + stream] * (upto - done)
        done = upto
    return made if made or begin else [offset + text.streams[0]]
