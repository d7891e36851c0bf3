"""Which tokens of which requests are computed in the next step.

Pure: no clock, no I/O, no randomness, no tensors.

What may enter this file: moving requests between waiting, running and finished, and granting tokens and
blocks. Choices belong to ``braid.policy``, states of blocks to ``block_pool``, keys to ``prefix_cache``,
effects to executors.

Rules:
    1. A request is in flight in at most one lane; what is in flight is neither planned, preempted nor
       changed.
    2. All blocks of the known tokens are granted at admission; a decode takes one more block when it
       crosses a boundary.
    3. A request waits for a block that an earlier one is filling rather than fill it twice; fillers wait
       for nobody.
    4. At least the last known token is computed, whatever the cache holds: its logits are needed.
    5. Leased blocks count as free wherever somebody needs them; leases are revoked before anybody is preempted.
    6. Who finds no memory for the blocks that were granted is preempted while it runs, and fails before it does.
    7. A request whose next blocks lie in a tier below waits aside until they are up, and does not hold them then; if
       others push them out before it starts, it waits again, but not for ever.
    8. A chunk whose layers are computed over several steps is one chunk: nothing of it counts before its last layer,
       no other chunk is begun meanwhile, and a lane of its own or a preemption begins it anew.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from braid.core.errors import InvalidParameterError, OverloadedError
from braid.core.faults import Faults
from braid.core.metrics import Histogram
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta, FinishReason, Request, Status
from braid.core.step import Layers, SampledToken, StepPlan, StepResult, Work
from braid.policy.admission import PoolLoad
from braid.policy.agents.describe import described
from braid.policy.agents.program import Finish, ProgramId
from braid.policy.phases.policy import Decided, Division
from braid.sched.block_pool import BlockPool
from braid.sched.config import COMPUTING, DECODE, MIXED, PREFILL, TIER, Policies, SchedulerConfig
from braid.sched.entry import Begun, Entry, ending
from braid.sched.inventory import Inventory
from braid.sched.lanes import Flight, Lanes, next_layers, step_seen
from braid.sched.observer import Observer, TurnStart, TurnStop
from braid.sched.prefix_cache import extend_keys, match_prefix, root_key
from braid.sched.programs import ProgramTable
from braid.sched.prompt_answer import answer_for
from braid.sched.queue import WaitingQueue, by_order
from braid.sched.ranked import RankedBlocks
from braid.sched.ranks import Ranks
from braid.sched.retention import KEYS_PER_BLOCK, KEYS_PER_LOWER_BLOCK, Retention
from braid.sched.tally import Tally
from braid.sched.tiers import LowerTier
from braid.sched.transfers import Transfers
from braid.sched.working_sets import WorkingSets

__all__ = ["Scheduler", "SchedulerConfig", "SchedulerStats"]

MAX_LOADS = 3
"""How often a request waits for blocks from below; what is missing then is computed."""
_NO_MEMORY = "the engine had no memory left for this request"


class SchedulerStats(NamedTuple):
    """Gauges now and counters since the start; field names are those of the engine's statistics."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    prefix_queries: int
    prefix_hits: int
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    generation_tokens: int
    num_programs: int
    num_leases: int
    num_leased_blocks: int
    leases_granted: int
    leases_clipped: int
    leases_revoked: int
    block_lifetime: Histogram
    block_idle_before_evict: Histogram
    block_reuse_gap: Histogram
    tokens_by_origin: Mapping[str, int]
    """Tokens of the turns that started; see ``braid.sched.observer.Origins``."""
    programs_kept: Mapping[str, int]
    """Programs that came back, or were given up, by what had become of their blocks."""
    keep_sources: Mapping[str, int]
    """Decisions what to keep, by what they rested on."""
    policy_state: Mapping[str, float]
    """What the policies have learnt, by names of their own."""
    oldest_newcomer_wait: float
    """Seconds that the first turn of a program has been waiting, the longest of all."""
    ttft_first: Histogram
    ttft_later: Histogram
    turn_preemptions: Histogram
    agent_log_dropped: int
    tiers: Mapping[str, Mapping[str, int]]
    """By tier below the device, what became of blocks; see ``LowerTier.counts``."""
    division: Division | None
    """How the phases share the machine since the last step was planned; None before."""


class BlockNeed(NamedTuple):
    """Args:
    num_running: requests.
    num_blocks: that there are.
    num_missed: blocks computed again, so far, that so many more would have kept.
    num_short: blocks that the next waiting request lacks; 0 if it waits for none.
    """

    num_running: int
    num_blocks: int
    num_missed: int
    num_short: int


class Scheduler:
    """Continuous batching over one block pool. Not thread-safe: one loop owns it.

    Args:
        faults: what tests let go wrong in here.
        observer: hears of every turn.
        decided: hears of every change of how the phases share the machine.
        kept: by tier, slots with blocks from an earlier life and their keys, see ``LowerTier``.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policies: Policies | None = None,
        *,
        faults: Faults | None = None,
        observer: Observer | None = None,
        kept: Mapping[str, Iterable[tuple[int, bytes]]] | None = None,
        decided: Callable[[Decided], None] | None = None,
    ) -> None:
        self.config = config
        policies = policies or Policies()
        agents = policies.agents
        self._order, self._gate, self._victim = agents.order, agents.gate, agents.victim
        self._admission = policies.admission_for(config)
        num_lower = config.num_lower_blocks
        programs = ProgramTable(KEYS_PER_BLOCK * config.block_bounds[1] + KEYS_PER_LOWER_BLOCK * num_lower)
        is_ranked, is_gated = agents.retention.is_ranked, not agents.gate.is_open
        ranks = Ranks(agents.retention, programs) if is_ranked or is_gated else None
        self._idle = RankedBlocks(programs, ranks) if ranks is not None and is_ranked else None
        least, most = config.block_bounds
        self._pool = BlockPool(config.num_blocks, self._idle, least=least, most=most)
        self._sets: WorkingSets | None = None
        if ranks is not None and is_gated:
            self._sets = WorkingSets(self._pool, programs, ranks, config.block_size, num_lower)
        faults = faults or Faults()
        self._allocate_first = faults.around("blocks", self._pool.allocate, "start")
        self._allocate_more = faults.around("blocks", self._pool.allocate, "grow")
        self._failures: list[Delta] = []
        self._waiting = WaitingQueue(agents.order, self._pool)
        self._transfers = self._lower_tiers(config, policies, kept or {})
        self._retention = Retention(self._pool, agents.retention, programs, ranks, self._transfers)
        self._entries: dict[str, Entry] = {}
        self._running: list[Entry] = []
        self._lanes = Lanes(policies.phases, config, decided)
        self._has_preempted = False
        """Whether the latest decodes have taken blocks from somebody."""
        self._now = float("-inf")
        self._num_added = self._num_steps = self._num_preemptions = 0
        self._num_short = 0
        """Blocks that the next waiting request needs and lacks, as of the latest plan; 0 if it waits for none."""
        self._prefix_queries = self._prefix_hits = 0
        self._prompt_tokens = self._generation_tokens = 0
        self._tally = Tally(config.block_size)
        self._observer = observer
        self._policies = policies

    def _lower_tiers(
        self, config: SchedulerConfig, policies: Policies, kept: Mapping[str, Iterable[tuple[int, bytes]]]
    ) -> Transfers | None:
        sizes = {"host": config.num_host_blocks, "disk": config.num_disk_blocks}
        tiers = [LowerTier(name, size, kept.get(name, ())) for name, size in sizes.items() if size]
        if not tiers:
            return None
        return Transfers(self._pool, tiers, policies.costs, config.block_size, self._waiting.bring_back)

    # -- requests come and go ------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> None:
        """Queue a request and set its ``max_tokens`` to what the context leaves.

        Raises:
            InvalidParameterError: the prompt is empty or leaves no room for one output token, or the id is
                in use.
            OverloadedError: ``max_waiting`` requests wait already.
        """
        self._check_prompt(request)
        if self._num_waiting >= self.config.max_waiting:
            raise OverloadedError(
                f"{self._num_waiting} requests are waiting, the limit is {self.config.max_waiting}"
            )
        room = self.config.max_model_len - request.num_prompt_tokens
        asked = request.params.max_tokens
        request.max_tokens = room if asked is None else min(asked, room)
        program = self._retention.arrive(request, now)
        entry = Entry(request, program, self._num_added, root_key(request.cache_salt))
        entry.answer = answer_for(request)
        entry.order = self._order.key(entry)
        self._num_added += 1
        self._entries[request.request_id] = entry
        self._look_back(entry)
        self._waiting.add(entry)

    def _look_back(self, entry: Entry) -> None:
        """What it may reuse of the turn before, and whether that is held for it."""
        program = entry.program
        entry.is_held = program in self._retention.holds
        known = max(len(program.keys), 0 if program.parent is None else len(program.parent.keys))
        if known and entry.answer is None:
            self._extend_keys(entry, min(known, entry.num_usable(self.config.block_size)))
            entry.reusable = self._retention.reusable(program, entry.keys)

    def _check_prompt(self, request: Request) -> None:
        if request.request_id in self._entries:
            raise InvalidParameterError(
                f"request_id {request.request_id!r} is in use; choose another", param="request_id"
            )
        length, limit = request.num_prompt_tokens, self.config.max_model_len
        if length == 0:
            raise InvalidParameterError(
                "the prompt is empty; it must hold at least one token", param="prompt"
            )
        reserved = 1 if request.pooling is None and request.params.max_tokens != 0 else 0
        if length + reserved > limit:
            rest = ", of which at least 1 is for the output" if reserved else ""
            raise InvalidParameterError(
                f"the prompt has {length} tokens, but this model's context is {limit} tokens{rest}",
                param="prompt",
                code="context_length_exceeded",
            )

    def abort(self, request_id: str, now: float) -> bool:
        """End a request at once, without a delta; False if it is not (or no longer) known."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        self._pool.now = now
        self._end(entry, FinishReason.ABORT, now)
        return True

    def program(self, verb: ProgramVerb, ref: ProgramRef, seconds: float | None, now: float) -> Outcome:
        """Act on what is kept for a program; ``seconds`` is how long to ``pin``."""
        self._pool.now = now
        return self._retention.act(verb, ref, seconds, now)

    def told(self, ref: ProgramRef, finish: Finish, tool: str | None, now: float) -> None:
        """How a program's latest turn has ended, by who has read its answer."""
        self._pool.now = now
        self._retention.told(ref, finish, tool, now)
        if self._observer is not None:
            self._observer.told(ProgramId(ref.owner, ref.program), finish, now)

    def programs(self, owner: str | None, limit: int, now: float) -> list[ProgramInfo]:
        """The latest programs of ``owner``, or of everybody, and where their KV lives."""
        kept, policy = self._retention, self._policies.agents.retention
        is_lower = None if self._transfers is None else self._transfers.has
        return Inventory(self._pool, kept.programs, kept.leases, policy, is_lower).list(owner, limit, now)

    # -- the three calls of a step, and the timers ---------------------------------------------------------

    def tick(self, now: float) -> None:
        """Take note of the time before planning: leases and holds end. Time never runs backwards."""
        assert now >= self._now, f"time ran backwards from {self._now} to {now}"
        self._now = self._pool.now = now
        self._lanes.ask_again()
        self._retention.tick(now)
        if self._transfers is not None:
            self._transfers.tick(now)
            self._measure_tiers(self._transfers)

    def next_deadline(self) -> float | None:
        """When to ``tick`` although nothing else happens: a lease or hold ends, or a copy has taken too long."""
        ends = [self._retention.next_deadline()]
        if self._transfers is not None:
            ends.append(self._transfers.next_deadline())
        return min((end for end in ends if end is not None), default=None)

    def schedule(self, lane: str, now: float) -> StepPlan | None:
        """The next step of an idle lane, or None if there is nothing to do for it.

        Raises:
            ValueError: the lane is unknown.
        """
        if lane == TIER and self._transfers is not None:
            self._prefetch(self._transfers)
            return self._transfers.plan(now)
        if lane not in COMPUTING:
            raise ValueError(f"unknown lane {lane!r}; lanes: {', '.join(COMPUTING)}, with tiers below {TIER}")
        assert lane not in self._lanes.flights, f"a step of lane {lane!r} is in flight"
        demand, division = self._lanes.divide(self._running, self._waiting, now)
        units = self._lanes.units(lane, division, demand)
        if not units:
            return None
        decodes, prefills = self._eligible()
        if not demand.num_decodes or (lane == PREFILL and DECODE not in self._lanes.flights):
            self._has_preempted = False
        grants: list[tuple[Entry, int]] = []
        preempted: tuple[str, ...] = ()
        budget = self.config.max_num_batched_tokens
        if lane == PREFILL:
            self._begin_anew(prefills)
        if division.is_prefill_first and lane == MIXED:
            self._prefill(prefills, min(budget, division.max_prefill), grants, now)
        if lane != PREFILL and not grants:
            preempted = self._grow(decodes)
            if preempted:
                decodes = [entry for entry in decodes if entry.request.status is Status.RUNNING]
                prefills = [entry for entry in prefills if entry.request.status is Status.RUNNING]
            grants += [(entry, 1) for entry in decodes[:budget]]
            self._has_preempted = bool(preempted and grants)
            if lane == MIXED and not division.is_prefill_first:
                self._prefill(prefills, min(budget - len(grants), division.max_prefill), grants, now)
        elif lane == PREFILL:
            self._prefill(prefills, min(budget, division.max_prefill), grants, now)
        return self._launch(lane, grants, preempted, units, division.num_layers) if grants else None

    def reshare(self) -> list[tuple[str, int]]:
        """After planning: the lanes in flight that are to compute on another number of units from now on."""
        return self._lanes.reshare()

    def failures(self) -> list[Delta]:
        """The ends of requests that failed while the last step was planned; each is told once."""
        failures, self._failures = self._failures, []
        return failures

    def update(self, result: StepResult, now: float) -> list[Delta]:
        """Take in what came of a step: tokens, ends, errors. Returns what callers are to know."""
        self._pool.now = now
        if result.lane == TIER and self._transfers is not None:
            self._transfers.update(result)
            self._measure_tiers(self._transfers)
            return []
        flight = self._lanes.land(result)
        deltas: list[Delta] = []
        for entry, work in zip(flight.entries, flight.plan.works, strict=True):
            entry.lane = None
            entry.request.in_flight = False
            if entry.request.is_finished:
                continue
            error = result.errors.get(work.request_id)
            if error is not None:
                can_retry = work.request_id in result.exhausted
                deltas.append(self._fail(entry, error, now, can_retry=can_retry))
                continue
            if work.layers is not None and not work.layers.is_last:
                carry = result.carried.get(work.request_id)
                entry.begun = Begun(len(work.token_ids), work.layers.end, carry)
                continue
            entry.begun = None
            deferred = work.request_id in result.deferred
            if deferred:
                self._defer(entry, work.start + len(work.token_ids))
            else:
                self._advance(entry, work.start + len(work.token_ids))
            if entry.answer is not None:
                entry.answer.take(work, result)
            if deferred:
                continue
            if work.sample is not None:
                deltas.append(self._accept(entry, result.tokens[work.request_id], now))
            elif entry.num_remaining == 0:
                deltas.append(self._conclude(entry, now))
        self._observe_cost(flight, result)
        self._pool.settle(result.lane)
        self._retention.settle(result.lane)
        return deltas

    # -- planning ------------------------------------------------------------------------------------------

    def _prefill(self, prefills: list[Entry], left: int, grants: list[tuple[Entry, int]], now: float) -> None:
        """Grant chunks of at most ``left`` tokens, to those that run and to newcomers."""
        begun = [(entry, entry.begun.num_tokens) for entry in prefills if entry.begun is not None]
        if begun:
            grants += begun
            return
        left -= self._continue_prefills(prefills, left, grants)
        # What decodes have just taken from somebody is not for a newcomer.
        if self._waiting and not self._has_preempted:
            self._admit(left, grants, now)

    def _eligible(self) -> tuple[list[Entry], list[Entry]]:
        """Running requests that no lane holds, in order: one token short (decodes), and the rest."""
        decodes: list[Entry] = []
        prefills: list[Entry] = []
        for entry in self._running:
            if entry.lane is None:
                computed = entry.request.num_computed_tokens
                single = computed and len(entry.request.token_ids) - computed == 1
                (decodes if single else prefills).append(entry)
        return decodes, prefills

    def _grow(self, decodes: list[Entry]) -> tuple[str, ...]:
        """Grant a block to every decode that crosses a block boundary; preempt while there is none."""
        preempted: list[str] = []
        block_size = self.config.block_size
        for entry in decodes:
            request = entry.request
            if len(request.token_ids) <= len(request.block_ids) * block_size:
                continue
            while request.status is Status.RUNNING and not self._make_room(1):
                if self._transfers is not None and self._transfers.make_room(1):
                    continue
                preempted.append(self._preempt(self._choose_victim()))
            if request.status is Status.RUNNING:
                try:
                    request.block_ids.extend(self._allocate_more(1))
                    if self._sets is not None:
                        self._sets.grew(entry)
                except MemoryError:
                    preempted.append(self._preempt(entry))
        return tuple(preempted)

    def _choose_victim(self) -> Entry:
        return self._victim.choose([entry for entry in self._running if entry.lane is None])

    def _make_room(self, count: int) -> bool:
        """See ``Retention.make_room``; one that runs alone, or nobody, is in nobody's way."""
        alone = len(self._running) <= 1 and not (self._transfers is not None and self._transfers.is_loading)
        freed = self._retention.make_room(count, alone=alone)
        for program in freed.ended:
            self._waiting.end_hold(program)
        return freed.enough

    def _preempt(self, entry: Entry) -> str:
        victim = entry.request
        self._retention.preempt(entry, self._computed_keys(entry), self._now)
        entry.num_lost = victim.num_computed_tokens
        self._observe_stop(entry, self._computed_keys(entry), "preempted", self._now)
        self._leave_running(entry)
        victim.status = Status.PREEMPTED
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        entry.wait_anew()
        self._num_preemptions += 1
        self._waiting.add(entry)
        return victim.request_id

    def _continue_prefills(self, prefills: list[Entry], left: int, grants: list[tuple[Entry, int]]) -> int:
        """Append chunks to ``grants``; the number of tokens granted."""
        granted = 0
        for entry in prefills:
            count = min(left - granted, entry.num_remaining)
            if count <= 0:
                break
            grants.append((entry, count))
            granted += count
        return granted

    def _admit(self, left: int, grants: list[tuple[Entry, int]], now: float) -> None:
        """Start waiting requests until there is no budget, no seat, or nobody who may start."""
        self._num_short = 0
        while left > 0 and self._admission.has_seat(len(self._running)):
            entry = self._start_next(now)
            if entry is None:
                break
            count = min(left, entry.num_remaining)
            grants.append((entry, count))
            left -= count

    def _start_next(self, now: float) -> Entry | None:
        """Start whoever is next; None if nobody may, or the one that may does not fit."""
        while self._waiting:
            for entry in self._waiting.next(now):
                if not self._may_enter(entry, now):
                    self._num_short = self._num_short or entry.num_usable(self.config.block_size) + 1
                    continue
                cached = self._match(entry)
                if self._park(entry, len(cached)):
                    break
                if self._transfers is not None and self._load(self._transfers, entry, cached):
                    break
                try:
                    return entry if self._start(entry, cached, now) else None
                except MemoryError:
                    self._failures.append(self._fail(entry, _NO_MEMORY, now, can_retry=True))
                    break
            else:
                return None
        return None

    def _may_enter(self, entry: Entry, now: float) -> bool:
        """Ask the gate. Asked before the blocks are matched: it is asked often, and matching takes longer."""
        if self._sets is None or not self._running:
            return True
        self._extend_usable(entry)
        return self._gate.admits(entry, self._sets.load(entry, len(self._running)), now)

    def _extend_usable(self, entry: Entry) -> int:
        usable = entry.num_usable(self.config.block_size)
        if entry.answer is None:
            self._extend_keys(entry, usable)
        return usable

    def _match(self, entry: Entry) -> list[int]:
        """READY blocks of the request's known prefix; its last token is never among them."""
        if entry.answer is not None:
            return []
        usable = self._extend_usable(entry)
        return match_prefix(self._pool, entry.keys, usable)

    def _extend_keys(self, entry: Entry, count: int) -> None:
        extend_keys(entry.keys, entry.root, entry.request.token_ids, self.config.block_size, count)

    def _park(self, entry: Entry, num_cached_blocks: int) -> bool:
        """Let a head of the queue wait if an earlier request is filling the block that it needs next."""
        if num_cached_blocks >= entry.num_usable(self.config.block_size) or entry.answer is not None:
            return False
        return self._waiting.park(entry, entry.keys[num_cached_blocks])

    def _load(self, transfers: Transfers, entry: Entry, cached: list[int]) -> bool:
        """Let one that could start now wait for its next blocks, if they are on their way up or lie below."""
        usable = entry.num_usable(self.config.block_size)
        if entry.answer is not None or len(cached) >= usable:
            return False
        load = transfers.loading(entry.keys[len(cached)])
        if load is None:
            if entry.num_loads == MAX_LOADS:
                return False
            needed = self._num_needed(entry, cached)
            num_free = self._pool.num_free + self._pool.num_revocable
            pool_load = PoolLoad(needed, num_free, self._pool.num_blocks, len(self._running))
            if needed > num_free or not self._admission.admits(pool_load):
                return False
            count = transfers.reach(entry.keys, len(cached), usable)
            if not count:
                return False
            entry.num_loads += 1
            self._pool.hold(cached)
            self._make_room(count)
            load = transfers.begin(entry.keys, cached, count, entry)
        transfers.wait(load, entry)
        self._waiting.set_aside(entry)
        return True

    def _prefetch(self, transfers: Transfers) -> None:
        """Have blocks of those who are next copied up, though they cannot start yet, if that is in nobody's way."""
        room = self._pool.num_empty
        if not room or not self._waiting or transfers.is_loading:
            return
        for entry in self._waiting.heads():
            if entry.prefetch_room is None or entry.prefetch_room > room or entry.answer is not None:
                continue
            cached = self._match(entry)
            count = transfers.reach(entry.keys, len(cached), entry.num_usable(self.config.block_size))
            entry.prefetch_room = count if count > room else None
            if 0 < count <= room:
                self._pool.hold(cached)
                transfers.begin(entry.keys, cached, count, entry)
                return

    def _measure_tiers(self, transfers: Transfers) -> None:
        """A tier that fails is none: the gate is not to count on it."""
        if self._sets is not None:
            self._sets.num_lower_blocks = transfers.num_slots

    def _num_needed(self, entry: Entry, cached: Sequence[int]) -> int:
        """Free blocks that it takes to start, with those of ``cached`` that are free now."""
        fresh = -(-len(entry.request.token_ids) // self.config.block_size) - len(cached)
        return fresh + self._pool.count_unused(cached)

    def _start(self, entry: Entry, cached: list[int], now: float) -> bool:
        """Move a request from the queue to running, with blocks for all it has; False if it does not fit.

        Raises:
            MemoryError: with everything as it was.
        """
        request = entry.request
        block_size = self.config.block_size
        fresh = -(-len(request.token_ids) // block_size) - len(cached)
        needed = fresh + self._pool.count_unused(cached)
        if not self._running:
            self._make_room(needed)
            needed = fresh + self._pool.count_unused(cached)
        num_free = self._pool.num_free + self._pool.num_revocable
        load = PoolLoad(needed, num_free, self._pool.num_blocks, len(self._running))
        if needed > num_free or not self._admission.admits(load):
            self._num_short = max(1, needed - num_free)
            return False
        self._pool.acquire(cached)
        self._pool.miss(entry.keys[len(cached) :])
        self._make_room(fresh)
        try:
            request.block_ids = cached + self._allocate_first(fresh)
        except MemoryError:
            self._pool.release(cached)
            raise
        if self._sets is not None:
            self._sets.started(entry, needed)
        self._waiting.remove(entry)
        entry.num_shared_blocks = len(cached)
        request.num_computed_tokens = len(cached) * block_size
        self._announce(entry, len(cached))
        self._observe_start(entry, len(cached), now)
        self._retention.start(entry, len(cached), now)
        self._order.started(entry, now)
        self._count_start(entry, now)
        request.status = Status.RUNNING
        insort(self._running, entry, key=by_order)
        return True

    def _announce(self, entry: Entry, first: int) -> None:
        count = len(entry.request.token_ids) // self.config.block_size
        self._extend_keys(entry, count)
        entry.announced = entry.keys[first:count]
        self._waiting.announce(entry, entry.announced)

    def _count_start(self, entry: Entry, now: float) -> None:
        request = entry.request
        if request.first_scheduled_time is not None:
            return
        request.first_scheduled_time = now
        request.num_cached_tokens = request.num_computed_tokens
        self._prompt_tokens += request.num_prompt_tokens
        if entry.answer is None:
            self._prefix_queries += request.num_prompt_tokens
            self._prefix_hits += request.num_computed_tokens

    def _launch(
        self,
        lane: str,
        grants: list[tuple[Entry, int]],
        preempted: tuple[str, ...],
        units: int,
        num_layers: int,
    ) -> StepPlan:
        """Works with one token on top of existing KV go first, whatever phase they belong to."""
        layers = next_layers(grants, num_layers, self.config.num_layers)
        singles: list[tuple[Entry, Work]] = []
        chunks: list[tuple[Entry, Work]] = []
        for entry, count in grants:
            work = self._work(entry, count, layers)
            entry.lane = lane
            entry.request.in_flight = True
            (singles if work.is_decode else chunks).append((entry, work))
        ordered = singles + chunks
        works = tuple([work for _, work in ordered])
        plan = StepPlan(self._num_steps, lane, works, preempted, units=units)
        self._num_steps += 1
        self._lanes.launch(plan, [entry for entry, _ in ordered])
        return plan

    def _work(self, entry: Entry, count: int, layers: Layers | None) -> Work:
        request = entry.request
        start = request.num_computed_tokens
        end = start + count
        if entry.begun is None:
            for block in self._fresh_blocks(entry, end):
                self._pool.fill(block)
        sample = entry.sample_spec() if end == len(request.token_ids) else None
        work = Work(request.request_id, request.token_ids[start:end], start, request.block_ids, sample)
        if layers is not None and not work.is_decode:
            carry = None if entry.begun is None else entry.begun.carry
            work = work._replace(layers=layers._replace(carry=carry))
            if not layers.is_last:
                return work._replace(sample=None)
        return work if entry.answer is None else entry.answer.ask(work)

    def _fresh_blocks(self, entry: Entry, end: int) -> Sequence[int]:
        """Those of its blocks that a chunk up to ``end`` is the first to write."""
        size = self.config.block_size
        return entry.request.block_ids[-(-entry.request.num_computed_tokens // size) : -(-end // size)]

    def _begin_anew(self, prefills: list[Entry]) -> None:
        """What a mixed step has begun does not go on in another lane."""
        for entry in prefills:
            if entry.begun is None:
                continue
            end = entry.request.num_computed_tokens + entry.begun.num_tokens
            for block in self._fresh_blocks(entry, end):
                self._pool.refill(block)
            entry.begun = None

    # -- taking results in ---------------------------------------------------------------------------------

    def _advance(self, entry: Entry, end: int) -> None:
        """KV exists for the first ``end`` tokens: publish the blocks that became full."""
        request = entry.request
        block_size = self.config.block_size
        first, last = request.num_computed_tokens // block_size, end // block_size
        request.num_computed_tokens = end
        if first == last:
            return
        self._extend_keys(entry, last)
        for index in range(first, last):
            key = entry.keys[index]
            self._pool.publish(request.block_ids[index], key)
            self._waiting.resolve(entry, key)
        if self._transfers is not None:
            self._transfers.store_early(entry, last)

    def _defer(self, entry: Entry, end: int) -> None:
        """Nothing was chosen after token ``end - 1``: it is computed once more, to be asked again."""
        last = end - 1
        if last % self.config.block_size == 0:
            self._pool.refill(entry.request.block_ids[last // self.config.block_size])
        self._advance(entry, last)

    def _accept(self, entry: Entry, token: SampledToken, now: float) -> Delta:
        request = entry.request
        request.token_ids.append(token.token_id)
        self._generation_tokens += 1
        if request.first_token_time is None:
            request.first_token_time = now
            self._tally.first_token(entry, now - request.arrival_time)
            self._policies.phases.answered(now - request.arrival_time, request.slo.ttft_s, now, is_first=True)
        elif request.last_token_time is not None:
            self._policies.phases.answered(
                now - request.last_token_time, request.slo.tbt_s, now, is_first=False
            )
        request.last_token_time = now
        reason, stop_reason = ending(request, token.token_id) or (None, None)
        if reason is not None:
            self._end(entry, reason, now, stop_reason=stop_reason)
        logprobs = None if token.logprobs is None else (token.logprobs,)
        cached = request.num_cached_tokens
        delta = Delta(request.request_id, (token.token_id,), logprobs, cached, reason, stop_reason)
        if entry.answer is not None:
            delta = delta._replace(prompt_logprobs=entry.answer.logprobs())
            entry.answer = None
        return delta if reason is None else delta._replace(times=request.times())

    def _conclude(self, entry: Entry, now: float) -> Delta:
        """End a request that wanted something of its prompt only."""
        request, answer = entry.request, entry.answer
        assert answer is not None, "nothing was wanted of a request"
        reason = FinishReason.LENGTH if request.pooling is None else FinishReason.STOP
        self._end(entry, reason, now)
        return Delta(
            request.request_id,
            (),
            None,
            request.num_cached_tokens,
            reason,
            times=request.times(),
            prompt_logprobs=answer.logprobs(),
            embedding=answer.embedding(),
        )

    def _fail(self, entry: Entry, error: str, now: float, *, can_retry: bool = False) -> Delta:
        """End one request whose step went wrong; nobody else may read the blocks that it filled from now on."""
        request = entry.request
        self._pool.withdraw(request.block_ids[entry.num_shared_blocks :])
        if self._transfers is not None:
            self._transfers.withdraw(self._computed_keys(entry)[entry.num_shared_blocks :])
        self._end(entry, FinishReason.ERROR, now, error=error)
        cached, times = request.num_cached_tokens, request.times()
        return Delta(
            request.request_id, (), None, cached, FinishReason.ERROR, None, error, times, can_retry=can_retry
        )

    def _end(
        self,
        entry: Entry,
        reason: FinishReason,
        now: float,
        *,
        stop_reason: int | None = None,
        error: str | None = None,
    ) -> None:
        request = entry.request
        lane = entry.lane
        request.finish_reason, request.stop_reason, request.error = reason, stop_reason, error
        request.finish_time = now
        is_running = request.status is Status.RUNNING
        left_any = is_running and reason is not FinishReason.ERROR
        doomed = self._retention.end_turn(entry, self._computed_keys(entry) if left_any else None, now)
        self._tally.ended(entry)
        if is_running:
            self._observe_stop(entry, self._computed_keys(entry) if left_any else (), reason.value, now)
            self._leave_running(entry)
        else:
            if self._transfers is not None and self._waiting.is_aside(entry):
                self._transfers.leave(entry)
            self._waiting.remove(entry)
        self._retention.discard(doomed, lane)
        del self._entries[request.request_id]
        request.status = Status.FINISHED

    def _computed_keys(self, entry: Entry) -> list[bytes]:
        """Of its blocks that are full of content."""
        return entry.keys[: entry.request.num_computed_tokens // self.config.block_size]

    def _leave_running(self, entry: Entry) -> None:
        """Give the seat and the blocks back; the list that a step in flight holds is left as it is."""
        request = entry.request
        self._running.remove(entry)
        if self._sets is not None:
            self._sets.stopped(entry)
        for key in entry.announced:
            self._waiting.resolve(entry, key)
        entry.announced, entry.begun = [], None
        if entry.lane is None:
            self._pool.release(request.block_ids)
        else:
            self._pool.retire(request.block_ids, entry.lane)
        request.block_ids = []

    def _observe_start(self, entry: Entry, num_found: int, now: float) -> None:
        origins = self._tally.started(entry, num_found)
        if self._observer is None:
            return
        request, program = entry.request, entry.program
        self._observer.started(
            TurnStart(
                now=now,
                number=entry.number,
                program=program.id,
                parent=None if program.parent is None else program.parent.id,
                num_tokens=request.num_tokens,
                keys=entry.keys[: entry.num_usable(self.config.block_size)],
                num_found=num_found,
                origins=origins,
                waited_s=0.0 if request.num_preemptions else now - request.arrival_time,
                is_again=request.num_preemptions > 0,
                num_evicted=self._pool.num_evicted,
            )
        )

    def _observe_stop(self, entry: Entry, keys: Sequence[bytes], reason: str, now: float) -> None:
        if self._observer is not None:
            num_tokens = entry.request.num_tokens
            self._observer.stopped(TurnStop(now, entry.number, entry.program.id, num_tokens, keys, reason))

    def _observe_cost(self, flight: Flight, result: StepResult) -> None:
        """How long a step took, for those who reckon with it."""
        if result.errors or not flight.plan.works:
            return
        seen = step_seen(flight, result.duration)
        costs = self._policies.costs
        if costs is not None:
            costs.observe_step(seen.num_prefill, seen.num_pairs, seen.num_decodes, seen.seconds)
        self._policies.phases.stepped(seen, result.start + result.duration)

    def _oldest_newcomer_wait(self) -> float:
        newcomers = [entry.request for entry in self._waiting if not entry.program.num_turns]
        return max(0.0, self._now - min((request.arrival_time for request in newcomers), default=self._now))

    # -- blocks come and go --------------------------------------------------------------------------------

    def resize(self, num_blocks: int, now: float) -> list[int]:
        """See ``BlockPool.resize``: have so many blocks, between two plans."""
        self._pool.now = now
        return self._pool.resize(num_blocks)

    def need(self, num_remembered: int) -> BlockNeed:
        """What more blocks would be worth; from now on ``num_remembered`` evicted ones are watched."""
        self._pool.num_remembered = num_remembered
        num_short = self._num_short if self._num_waiting else 0
        return BlockNeed(len(self._running), self._pool.num_blocks, self._pool.num_missed, num_short)

    # -- looking in ----------------------------------------------------------------------------------------

    @property
    def has_unfinished(self) -> bool:
        return bool(self._entries)

    @property
    def _num_waiting(self) -> int:
        return len(self._entries) - len(self._running)

    def stats(self) -> SchedulerStats:
        times = self._pool.times()
        leases = self._retention.leases
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=self._num_waiting,
            num_blocks=self._pool.num_blocks,
            num_free_blocks=self._pool.num_free + self._pool.num_revocable,
            num_cached_blocks=self._pool.num_cached,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            num_preemptions=self._num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_programs=len(self._retention.programs),
            num_leases=len(leases),
            num_leased_blocks=self._pool.num_leased,
            leases_granted=leases.num_granted,
            leases_clipped=leases.num_clipped,
            leases_revoked=leases.num_revoked,
            block_lifetime=times.lifetime,
            block_idle_before_evict=times.idle_before_evict,
            block_reuse_gap=times.reuse_gap,
            tokens_by_origin=dict(self._tally.tokens),
            programs_kept=dict(self._retention.kept),
            keep_sources=dict(self._retention.sources),
            policy_state=described(*self._policies.agents[1:], self._policies.costs, self._policies.phases),
            oldest_newcomer_wait=self._oldest_newcomer_wait(),
            ttft_first=self._tally.ttft_first.read(),
            ttft_later=self._tally.ttft_later.read(),
            turn_preemptions=self._tally.preemptions.read(),
            agent_log_dropped=0 if self._observer is None else self._observer.num_dropped,
            tiers={} if self._transfers is None else self._transfers.counts(),
            division=self._lanes.division,
        )

    def check_integrity(self) -> None:
        """Prove that every block and every request is in exactly one place.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        leased = [lease.blocks for lease in self._retention.leases]
        tables = [entry.request.block_ids for entry in self._running]
        tables += [hold.blocks for hold in self._retention.holds]
        if self._transfers is not None:
            tables += self._transfers.tables()
            self._transfers.check_integrity()
        self._pool.check_integrity(tables, leased)
        self._retention.check_integrity()
        if self._idle is not None:
            self._idle.check_integrity()
        if self._sets is not None:
            self._sets.check_integrity()
        self._waiting.check_integrity()
        places = [*self._waiting, *self._running]
        assert len(places) == len(self._entries) == len({id(entry) for entry in places}), "a request is lost"
        assert self._running == sorted(self._running, key=by_order), "running is out of order"
        for entry in self._running:
            self._check_entry(entry)

    def _check_entry(self, entry: Entry) -> None:
        request = entry.request
        size = self.config.block_size
        assert request.in_flight == (entry.lane is not None), "in flight without a lane"
        assert entry.begun is None or entry.begun.num_tokens <= entry.num_remaining, (
            "begun more than there is"
        )
        assert 0 <= request.num_computed_tokens < request.num_tokens, "computed more than there is"
        assert len(request.block_ids) * size >= request.num_computed_tokens, "computed without blocks"
        assert len(request.block_ids) <= -(-request.num_tokens // size), "more blocks than tokens"

    def dump(self) -> str:
        """The state as text, for reports of stalls."""
        numbers = {name: value for name, value in self.stats()._asdict().items() if isinstance(value, int)}
        lines = [" ".join(f"{name}={value}" for name, value in numbers.items())]
        lines += [
            f"in flight: step {flight.plan.step_id} of lane {lane}, "
            f"{len(flight.plan.works)} requests, {flight.plan.num_scheduled_tokens} tokens"
            for lane, flight in self._lanes.flights.items()
        ]
        if self._transfers is not None:
            lines.append(self._transfers.dump())
        for entry in self._entries.values():
            request = entry.request
            lines.append(
                f"{request.request_id}: {request.status.value}, "
                f"{request.num_computed_tokens}/{request.num_tokens} tokens computed, "
                f"{len(request.block_ids)} blocks, lane {entry.lane}"
                + (", waits for a block being filled" if entry.parked_on else "")
                + (", waits for blocks from a tier below" if self._waiting.is_aside(entry) else "")
            )
        return "\n".join(lines)
