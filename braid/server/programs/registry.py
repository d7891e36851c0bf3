"""The programs that this server knows: who they are, what they have used, and which prompt continues which."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from braid.core.program import ProgramRef, RetainIntent
from braid.server.config import ServerConfig
from braid.server.lifecycle import RequestRecord, Usage
from braid.server.programs.fields import dig, flag
from braid.server.programs.identity import Identity, resolve
from braid.server.programs.intent import ACTED_ON, Wishes, read_wishes
from braid.server.programs.lineage import Lineage, Node, Prompt
from braid.server.programs.volatile import Glance

OUTCOMES_HEADER = b"x-braid-outcomes"
OUTCOMES_FIELD = "braid.outcomes"

Clock = Callable[[], float]

logger = logging.getLogger(__name__)


class Told(NamedTuple):
    """What one request says of its program and its wishes, and what its prompt shows.

    ``prompt`` is None where there are several prompts: they are no turn of anything.
    """

    identity: Identity
    wishes: Wishes
    prompt: Prompt | None = None
    boundaries: tuple[int, ...] = ()
    tokens: Sequence[int] = ()
    """Of that prompt."""

    @property
    def intent(self) -> RetainIntent | None:
        """The wishes with the boundaries they hold for; in the implicit mode the whole prompt is one too."""
        intent = self.wishes.intent
        if not self.boundaries:
            return intent
        whole = (self.prompt.length,) if self.prompt is not None and not self.wishes.marked_only else ()
        ends = tuple(sorted({*self.boundaries, *whole}))
        return replace(intent or RetainIntent(), boundaries=ends)


class Plan(NamedTuple):
    """The place of one request among the programs; nothing of it counts before it runs."""

    program: ProgramRef
    told: Told
    continues: Node | None = None


class Result(NamedTuple):
    """How a turn went: the accepted tokens of each output, and whether any came to its end."""

    outputs: Sequence[Sequence[int]]
    finished: bool
    usage: Usage


@dataclass(slots=True, eq=False)
class ProgramState:
    """What is known of one program; times are seconds on the monotonic clock."""

    ref: ProgramRef
    first_seen: float
    last_seen: float
    turns: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    active: int = 0
    """Turns under way."""
    lease_until: float | None = None
    glance: Glance | None = None
    """Of its first prompt, until another one has been compared with it."""
    is_compared: bool = False

    def count(self, usage: Usage) -> None:
        self.num_prompt_tokens += usage.num_prompt_tokens
        self.num_output_tokens += usage.num_output_tokens
        self.num_cached_tokens += usage.num_cached_tokens


class _Owner:
    """The programs of one API key, the longest unused first."""

    def __init__(self, max_programs: int) -> None:
        self.lineage = Lineage()
        self.programs: OrderedDict[str, ProgramState] = OrderedDict()
        self._max_programs = max_programs
        self.is_warned = False
        """Of prompts that begin with something that changes."""

    def touch(self, ref: ProgramRef, now: float) -> ProgramState:
        """The state of a program, made if it is new. What a client leaves out this time stays as it was."""
        state = self.programs.get(ref.program)
        if state is None:
            state = self.programs[ref.program] = ProgramState(ref, now, now)
        else:
            old = state.ref
            state.ref = replace(ref, parent=ref.parent or old.parent, group=ref.group or old.group)
        state.last_seen = now
        self.programs.move_to_end(ref.program)
        return state

    def prune(self, now: float, idle_seconds: float) -> None:
        """Forget what is idle for long, and the longest unused beyond the limit; never what is under way."""
        excess = len(self.programs) - self._max_programs
        leaving = []
        for name, state in self.programs.items():
            if excess <= 0 and now - state.last_seen <= idle_seconds:
                break
            if not state.active:
                leaving.append(name)
                excess -= 1
        for name in leaving:
            del self.programs[name]


class Programs:
    """One per application. All but ``read`` and ``look`` belongs to the event loop's thread.

    Args:
        acted_on: the wishes that the engine acts on.
    """

    def __init__(
        self,
        config: ServerConfig,
        clock: Clock = time.monotonic,
        *,
        acted_on: Callable[[], frozenset[str]] = lambda: ACTED_ON,
    ) -> None:
        self._config = config
        self._acted_on = acted_on
        self._clock = clock
        self._owners: dict[str, _Owner] = {}

    def read(self, record: RequestRecord, headers: Iterable[tuple[bytes, bytes]]) -> Told:
        """Identity and wishes of a request, noted in its record too.

        Raises:
            InvalidParameterError: a known field has a wrong type.
        """
        sent = list(headers)
        identity = resolve(sent, record.body, record.principal.name)
        wishes = read_wishes(record.body, max_ttl=self._config.max_ttl, acted_on=self._acted_on())
        record.session_id = None if identity.program is None else identity.program.program
        record.wants_outcomes = _wants_outcomes(sent, record.body)
        record.outcomes.extend((*identity.outcomes, *wishes.outcomes))
        record.body = {}  # nobody reads it again, and a stream may be long
        return Told(identity, wishes)

    def look(self, told: Told, prompt: Sequence[int], open_tokens: int) -> Told:
        """Add what a prompt shows; see ``Lineage.prompt``."""
        lineage = self._owner(told.identity.owner).lineage
        return told._replace(prompt=lineage.prompt(prompt, open_tokens), tokens=prompt)

    def plan(self, told: Told) -> Plan:
        """Decide whose turn a request is: the program it names, the one its prompt continues, or a new one."""
        identity = told.identity
        node = None
        if told.prompt is not None:
            key = identity.cache_key if identity.program is None else None
            node = self._owner(identity.owner).lineage.match(told.prompt, key)
        if identity.program is None:
            return Plan(self._inferred(identity, node), told, node)
        own = node is not None and node.program == identity.program.program
        return Plan(identity.program, told, node if own else None)

    def _inferred(self, identity: Identity, node: Node | None) -> ProgramRef:
        group = identity.group or identity.cache_key
        ref = ProgramRef(
            owner=identity.owner,
            program=f"auto-{secrets.token_hex(8)}",
            group=group,
            final=identity.final,
            source="anonymous",
        )
        if node is None:
            return ref
        if node.continued:
            return replace(ref, parent=node.program, source="fork")
        known = self.find(identity.owner, node.program)
        source = "prefix" if identity.cache_key is None else "prompt_cache_key"
        parent, group = (None, group) if known is None else (known.ref.parent, known.ref.group or group)
        return replace(ref, program=node.program, parent=parent, group=group, source=source)

    @contextmanager
    def running(self, plan: Plan, result: Callable[[], Result], block_size: int) -> Iterator[None]:
        """While the turn runs; its result is asked for at the end."""
        owner = self._owner(plan.program.owner)
        state = owner.touch(plan.program, self._clock())
        owner.prune(self._clock(), self._config.program_idle_seconds)
        self._compare(owner, state, plan.told.tokens, block_size)
        state.active += 1
        if plan.continues is not None:
            plan.continues.pending += 1
        try:
            yield
        finally:
            state.active -= 1
            if plan.continues is not None:
                plan.continues.pending -= 1
            self._ended(plan, state, result(), block_size)

    def _ended(self, plan: Plan, state: ProgramState, result: Result, block_size: int) -> None:
        """An aborted turn can be continued, or sent again, so it leaves its points and takes no other's place."""
        state.last_seen = self._clock()
        state.count(result.usage)
        owner = self._owner(plan.program.owner)
        prompt = plan.told.prompt
        if prompt is not None and any(result.outputs):
            node = Node(plan.program.program, plan.told.identity.cache_key)
            owner.lineage.add(node, prompt, result.outputs, block_size)
        if not result.finished:
            return
        state.turns += 1
        if plan.continues is not None:
            plan.continues.continued = True
        intent = plan.told.wishes.intent
        if intent is not None and intent.lease_s is not None:
            state.lease_until = state.last_seen + intent.lease_s
        if plan.program.final and not state.active:
            owner.programs.pop(plan.program.program, None)

    def _compare(self, owner: _Owner, state: ProgramState, prompt: Sequence[int], block_size: int) -> None:
        """See whether a program's prompts begin with something that changes every time, and say so once per owner."""
        if owner.is_warned or state.is_compared:
            return
        if state.glance is None:
            state.glance = Glance.at(prompt, block_size)
            return
        glance, state.glance, state.is_compared = state.glance, None, True
        place = glance.first_difference(prompt)
        if place is not None:
            owner.is_warned = True
            logger.warning(
                "the prompts of a program are nearly the same but differ at token %d, so nothing of them is reused; "
                "its client should put what changes behind what does not",
                place,
            )

    def find(self, owner: str, program: str) -> ProgramState | None:
        known = self._owners.get(owner)
        return None if known is None else known.programs.get(program)

    def close(self, owner: str, program: str) -> None:
        """Forget a program; a turn that comes later makes it anew."""
        state = self.find(owner, program)
        if state is not None and not state.active:
            del self._owners[owner].programs[program]

    def of(self, owner: str) -> list[ProgramState]:
        """The programs of one owner, the oldest first."""
        known = self._owners.get(owner)
        if known is None:
            return []
        known.prune(self._clock(), self._config.program_idle_seconds)
        return sorted(known.programs.values(), key=lambda state: state.first_seen)

    def lease(self, state: ProgramState, seconds: float) -> None:
        state.lease_until = self._clock() + seconds

    def now(self) -> float:
        return self._clock()

    def _owner(self, name: str) -> _Owner:
        """Owners are as many as there are API keys."""
        owner = self._owners.get(name)
        if owner is None:
            share = self._config.key_share if name else 1.0
            made = _Owner(max(1, int(self._config.max_programs * share)))
            owner = self._owners.setdefault(name, made)
        return owner


def _wants_outcomes(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any]) -> bool:
    value = dig(body, OUTCOMES_FIELD)
    if value is not None:
        return flag(value, OUTCOMES_FIELD)
    return any(name == OUTCOMES_HEADER and raw.lower() in (b"true", b"1") for name, raw in headers)
