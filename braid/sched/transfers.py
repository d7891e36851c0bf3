"""Which blocks are copied to the tiers below, and which come back up. Steps of the lane ``tier``.

Rules:
    1. What programs leave is copied down behind their backs, and where memory is short what their turns make is, too: a
       block that is evicted later is not lost, and its eviction needs no copy. A copy that is under way changes nothing
       but that its block is not evicted meanwhile.
    2. Loads go before stores, but not twice running where both wait. One for a request that could start now may evict
       idle blocks, as the request would; any other fills blocks only that hold nothing.
    3. Blocks come up as a chain from its beginning; where one fails, the rest of its load is given up.
    4. A load gives its blocks back where a running request finds none; those that a step in flight writes when that
       is over. Whoever waits for a load is in line again as soon as the load is over, however it ends.
    5. A step that is stuck (a disk may hang for ever) is the end of all tiers; what it may still write to stays taken.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from braid.core.step import Move, StepPlan, StepResult
from braid.policy.agents.costs import Costs
from braid.policy.agents.program import Program
from braid.sched.block_pool import BlockPool
from braid.sched.config import TIER, TIER_STALL_S
from braid.sched.entry import Entry
from braid.sched.tiers import LowerTier

LOAD_BATCH = 256
STORE_BATCH = 32
"""Blocks of one step: a load waits for no more than the store that is under way."""
POOL_SHARE = 16
"""A store locks at most one part in so many of the device's blocks."""
EARLY_SHARE = 2
"""Where fewer than one part in so many of the device's blocks is free, turns are copied while they run."""
PROBE_EVERY = 64
PROBE_BLOCKS = 8
"""Of the loads that seem to take too long, one in so many is tried all the same, so many blocks of it: what was slow
once need not be so for ever, and only loads can tell."""


@dataclass(slots=True, eq=False)
class Load:
    """Blocks ``keys`` of a chain on their way up.

    Args:
        entry: the request that it is for, if any.
        first: how many blocks of the chain are before these.
        held: these blocks, while nobody may evict them.
        blocks: one for every key; the first ``num_done`` have their content.
        waiters: requests that are aside until it is over.
    """

    keys: Sequence[bytes]
    entry: Entry | None
    first: int
    held: list[int]
    blocks: list[int]
    waiters: list[Entry] = field(default_factory=list)
    num_done: int = 0
    is_over: bool = False
    names: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        self.names = frozenset(self.keys)


@dataclass(slots=True, eq=False)
class Store:
    """A chain on its way down, of which ``num_seen`` keys need nothing more to be done.

    ``leaving`` are keys whose blocks are the first to be evicted afterwards. An early one is of a turn that still runs.
    """

    program: Program
    keys: tuple[bytes, ...]
    leaving: tuple[bytes, ...] = ()
    num_seen: int = 0
    is_early: bool = False


class Writer:
    """What is to be copied to one tier: the latest chains of programs, first come, first served."""

    def __init__(self, tier: LowerTier, pool: BlockPool) -> None:
        self.tier = tier
        self._pool = pool
        self._stores: OrderedDict[Program, Store] = OrderedDict()
        self._seen: list[Store] = []
        """Over when the step in flight is."""

    def add(self, program: Program, keys: tuple[bytes, ...], leaving: tuple[bytes, ...]) -> None:
        """Instead of what was to be copied for the program before."""
        self._stores[program] = Store(program, keys[: self.tier.num_slots], leaving)

    def add_early(self, program: Program, keys: Sequence[bytes], first: int) -> None:
        """The keys from ``first`` on are new in a chain that still grows; those before are left to ``add``."""
        pending = self._stores.get(program)
        if pending is not None:
            first = min(first, pending.num_seen)
        keys = tuple(keys[: self.tier.num_slots])
        if first < len(keys):
            self._stores[program] = Store(program, keys, num_seen=first, is_early=True)

    def forget(self, program: Program) -> None:
        self._stores.pop(program, None)

    def close(self) -> None:
        """The tier cannot be used any more: what was to go there may leave the device without."""
        self.tier.close()
        self._seen += self._stores.values()
        self._stores.clear()

    def next(self, limit: int) -> list[Move]:
        """What to copy now, at most ``limit`` blocks."""
        moves: list[Move] = []
        while self._stores and len(moves) < limit:
            store = next(iter(self._stores.values()))
            if not self._take(store, moves, limit):
                break
            if store.num_seen == len(store.keys):
                del self._stores[store.program]
                if not store.is_early:
                    self._seen.append(store)
        return moves

    def seen(self) -> list[Store]:
        """The stores that are over, now that no step is in flight."""
        seen, self._seen = self._seen, []
        return seen

    def _take(self, store: Store, moves: list[Move], limit: int) -> bool:
        """Append one store's moves; False if the tier has no slot now."""
        if not store.num_seen and not store.is_early:
            self.tier.touch(store.keys)  # what it has of the chain is not to make room for the rest
        while store.num_seen < len(store.keys) and len(moves) < limit:
            key = store.keys[store.num_seen]
            if key not in self.tier:
                block = self._pool.find(key)
                if block is None:  # gone; what comes after it is of no use alone
                    store.num_seen = len(store.keys)
                    break
                slot = self.tier.reserve(key)
                if slot is None:
                    return False
                moves.append(Move(block, self.tier.name, slot, key, is_load=False))
            store.num_seen += 1
        return True


class Transfers:
    """Everything between one pool and the tiers below it.

    Args:
        tiers: the faster before the slower; each has copies of its own.
        costs: decides whether a load is worth its time, and hears of every load; None loads whatever there is.
        bring_back: called with a request whose load is over.
    """

    def __init__(
        self,
        pool: BlockPool,
        tiers: Sequence[LowerTier],
        costs: Costs | None,
        block_size: int,
        bring_back: Callable[[Entry], None],
    ) -> None:
        self._pool = pool
        self.tiers = {tier.name: tier for tier in tiers}
        self._writers = [Writer(tier, pool) for tier in tiers]
        self._costs = costs
        self._block_size = block_size
        self._bring_back = bring_back
        self._loads: list[Load] = []
        self._flight: tuple[StepPlan, Load | None] | None = None
        self._flight_ends = inf
        self._num_steps = self._num_unpaid = 0
        self._was_load = False
        self._store_batch = min(STORE_BATCH, max(1, pool.num_blocks // POOL_SHARE))

    # -- what programs leave -------------------------------------------------------------------------------

    def store(self, program: Program, leaving: tuple[bytes, ...] = ()) -> None:
        """Copy down what a program has, ``leaving`` of which is the first to be evicted then."""
        for writer in self._writers:
            writer.add(program, program.keys, leaving)

    def store_early(self, entry: Entry, count: int) -> None:
        """A turn that runs has ``count`` blocks with content now. Where running turns have most of the device, what
        they leave could be evicted before its copy."""
        if entry.program.id is None or self._pool.num_free >= self._pool.num_blocks // EARLY_SHARE:
            return
        first, entry.num_stored_early = entry.num_stored_early, count
        for writer in self._writers:
            writer.add_early(entry.program, entry.keys[:count], first)

    def withdraw(self, keys: Sequence[bytes]) -> None:
        """What has been copied of these is not to be trusted."""
        for tier in self.tiers.values():
            tier.withdraw(keys)

    def forget(self, program: Program) -> None:
        """Nothing of it is to be copied any more."""
        for writer in self._writers:
            writer.forget(program)

    def demote(self, keys: tuple[bytes, ...]) -> None:
        """These are of no use to anyone: they go first from the tiers below."""
        for tier in self.tiers.values():
            tier.demote(keys)

    # -- what comes back up --------------------------------------------------------------------------------

    @property
    def is_loading(self) -> bool:
        return any(not load.is_over for load in self._loads)

    def loading(self, key: bytes) -> Load | None:
        """The load under way that has this key."""
        loads = (load for load in self._loads if not load.is_over and key in load.names)
        return next(loads, None)

    def reach(self, keys: Sequence[bytes], first: int, end: int) -> int:
        """How many of ``keys[first:end]``, from the first of them without a gap, lie below and are worth a load."""
        count = 0
        while first + count < end and self._locate(keys[first + count]) is not None:
            count += 1
        if not count or self._pays(count, first):
            return count
        self._num_unpaid += 1
        return 0 if self._num_unpaid % PROBE_EVERY else min(count, PROBE_BLOCKS)

    def begin(
        self, keys: Sequence[bytes], cached: Sequence[int], count: int, entry: Entry | None = None
    ) -> Load:
        """Load ``count`` blocks of a chain on top of ``cached``, which are held already; so many must be free."""
        first = len(cached)
        for tier in self.tiers.values():
            tier.touch(tuple(keys[: first + count]))
        wanted = keys[first : first + count]
        load = Load(wanted, entry, first, list(cached), self._pool.allocate(count))
        self._loads.append(load)
        return load

    def wait(self, load: Load, entry: Entry) -> None:
        """A request waits for it."""
        load.waiters.append(entry)

    def leave(self, entry: Entry) -> None:
        """A request waits no more; a load that nobody waits for is given up."""
        for load in list(self._loads):
            if entry in load.waiters:
                load.waiters.remove(entry)
                if not load.waiters:
                    self._end(load)

    def make_room(self, count: int) -> bool:
        """Give loads up, the latest first, until ``count`` blocks are free; whether they are."""
        for load in reversed(list(self._loads)):
            if self._pool.num_free >= count:
                break
            if not load.is_over:
                self._end(load)
        return self._pool.num_free >= count

    # -- looking in ----------------------------------------------------------------------------------------

    def has(self, key: bytes) -> bool:
        """Whether a tier below has it."""
        return self._locate(key) is not None

    @property
    def num_slots(self) -> int:
        """Blocks that can be kept below; each tier has copies of its own."""
        return max(tier.num_slots for tier in self.tiers.values())

    def dump(self) -> str:
        """The state as text, for reports of stalls."""
        flight = "nothing" if self._flight is None else f"step {self._flight[0].step_id}"
        loads = [f"{load.num_done}/{len(load.keys)} for {len(load.waiters)}" for load in self._loads]
        return f"lane {TIER}: {flight} in flight, loads: {', '.join(loads) or 'none'}"

    def counts(self) -> dict[str, dict[str, int]]:
        return {name: dict(tier.counts()) for name, tier in self.tiers.items()}

    # -- steps ---------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Give the tiers up if a step is stuck."""
        if now < self._flight_ends:
            return
        self._flight_ends = inf
        for writer in self._writers:
            writer.close()
        for load in list(self._loads):
            if not load.is_over:
                self._end(load)

    def next_deadline(self) -> float | None:
        """When to ``tick``, if anybody waits for what is under way."""
        return self._flight_ends if self._flight_ends < inf and self.is_loading else None

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None if there is nothing to copy."""
        assert self._flight is None, f"a step of lane {TIER!r} is in flight"
        self._settle_stores()
        moves = self._next_stores() if self._was_load else []
        load: Load | None = None
        if not moves:
            moves, load = self._next_load()
        if not moves and not self._was_load:
            moves = self._next_stores()
        self._was_load = load is not None
        if not moves:
            self._settle_stores()
            return None
        plan = StepPlan(self._num_steps, TIER, (), moves=tuple(moves))
        self._num_steps += 1
        self._flight, self._flight_ends = (plan, load), now + TIER_STALL_S
        return plan

    def update(self, result: StepResult) -> None:
        """Take in what came of the step in flight."""
        assert self._flight is not None, "no step is in flight"
        (plan, load), self._flight = self._flight, None
        self._flight_ends = inf
        assert plan.step_id == result.step_id, f"step {result.step_id} is not the one in flight"
        if load is None:
            self._stored(plan.moves, result.failed_moves)
        else:
            self._loaded(load, plan.moves, result)
        for writer in self._writers:
            if writer.tier.name in result.broken_tiers:
                writer.close()
        self._prune()

    def tables(self) -> Iterator[list[int]]:
        """The blocks that loads have, for checks of references."""
        for load in self._loads:
            yield load.held
            yield load.blocks

    def check_integrity(self) -> None:
        """See ``LowerTier``; and everybody who waits does so for a load that is under way."""
        for tier in self.tiers.values():
            tier.check_integrity()
        for load in self._loads:
            assert not (load.is_over and load.waiters), "somebody waits for a load that is over"
            assert load.is_over or len(load.blocks) == len(load.keys), "a load has lost a block"

    # -- inside --------------------------------------------------------------------------------------------

    def _locate(self, key: bytes) -> LowerTier | None:
        for tier in self.tiers.values():
            if tier.find(key) is not None:
                return tier
        return None

    def _pays(self, count: int, first: int) -> bool:
        if self._costs is None:
            return True
        reload_s = self._costs.reload_s(count)
        return reload_s < inf and reload_s < self._costs.prefill_s(
            count * self._block_size, first * self._block_size
        )

    def _next_load(self) -> tuple[list[Move], Load | None]:
        """The next step of the first load that has anything to do."""
        while self._loads:
            load = self._loads[0]
            moves = self._ask(load)
            if moves:
                return moves, load
            self._end(load)
        return [], None

    def _prune(self) -> None:
        """End the loads at the head of the queue that cannot go on, so that nobody waits for them in vain."""
        while self._loads and self._locate(self._loads[0].keys[self._loads[0].num_done]) is None:
            self._end(self._loads[0])

    def _ask(self, load: Load) -> list[Move]:
        moves: list[Move] = []
        end = min(len(load.keys), load.num_done + LOAD_BATCH)
        for index in range(load.num_done, end):
            tier = self._locate(load.keys[index])
            if tier is None:
                break
            key, block = load.keys[index], load.blocks[index]
            self._pool.fill(block)
            moves.append(Move(block, tier.name, tier.acquire(key), key, is_load=True))
        return moves

    def _loaded(self, load: Load, moves: Sequence[Move], result: StepResult) -> None:
        if self._costs is not None and not result.failed_moves:
            self._costs.observe_reload(len(moves), result.duration)
        is_good, origins = True, Counter[str]()
        for index, move in enumerate(moves):
            arrived = index not in result.failed_moves
            self.tiers[move.tier].release(move.key, is_good=arrived)
            is_good = is_good and arrived
            if is_good:
                self._pool.publish(move.block, move.key)
                load.num_done += 1
                origins[move.tier] += 1
        if load.entry is not None:
            load.entry.count_loaded(load.first, origins["host"], origins["disk"])
        if load.is_over or not is_good or load.num_done == len(load.keys):
            self._end(load)

    def _end(self, load: Load) -> None:
        """Give back what no step in flight writes to; whoever waits goes on."""
        in_flight = self._in_flight(load)
        kept = [block for block in load.blocks if block in in_flight]
        left = [*load.held, *(block for block in load.blocks if block not in in_flight)]
        load.is_over, load.held, load.blocks = True, [], kept
        if not kept:
            self._loads.remove(load)
        self._pool.release(left)
        waiters, load.waiters = load.waiters, []
        for entry in waiters:
            self._bring_back(entry)

    def _in_flight(self, load: Load) -> set[int]:
        if self._flight is None or self._flight[1] is not load:
            return set()
        return {move.block for move in self._flight[0].moves}

    def _next_stores(self) -> list[Move]:
        for writer in self._writers:
            moves = writer.next(self._store_batch)
            if moves:
                self._pool.lock(move.block for move in moves)
                return moves
        return []

    def _stored(self, moves: Sequence[Move], failed: Iterable[int]) -> None:
        failures = frozenset(failed)
        for index, move in enumerate(moves):
            tier = self.tiers[move.tier]
            is_same = self._pool.find(move.key) == move.block
            (tier.publish if is_same and index not in failures else tier.cancel)(move.key)
        self._pool.unlock(move.block for move in moves)
        self._settle_stores()

    def _settle_stores(self) -> None:
        """Stores that are over: their chains were used, and what is to leave the device may."""
        for writer in self._writers:
            for store in writer.seen():
                writer.tier.touch(store.keys)
                if store.leaving and store.program.is_idle:
                    found = [block for key in store.leaving if (block := self._pool.find(key)) is not None]
                    self._pool.demote(found)
