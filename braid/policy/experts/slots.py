"""Which expert has which slot: the one table that the store works by, and every replay of recorded routing.

Pure and single-threaded: whoever holds the slots calls it, one call at a time, and moves the bytes.

The course of one layer's step::

    demand = table.use(routed)          # marks them in use, and says for each: hit, join, load or bypass
    table.loaded(expert)                # a read has ended well; or table.failed(expert)
    table.release(routed.loads)         # computed: they may be victims again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.policy import ExpertCache, Routed

ABSENT = -1
PHASES = ("decode", "prefill")


class State(Enum):
    """Of an expert: no slot; a slot that is being filled; a slot that may be computed with."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"


class Load(NamedTuple):
    """Read ``expert`` into ``slot``, then call ``loaded`` or ``failed``. ``evicted`` had the slot before (or None)."""

    expert: int
    slot: int
    evicted: int | None = None


class Demand(NamedTuple):
    """What a layer's step has to do for each of its experts; each is in exactly one of the four."""

    hits: tuple[int, ...]
    """Ready: compute."""
    joins: tuple[int, ...]
    """Somebody reads it already (a prefetch, or another step): wait for that read."""
    loads: tuple[Load, ...]
    """Read into this slot, heaviest load first."""
    bypasses: tuple[int, ...]
    """Not worth a slot, or none can be had: compute from the staging ring. Heaviest load first."""

    def without(self, experts: Container[int]) -> Demand:
        """The same, but for experts that are computed elsewhere, none of which is read."""
        hits, joins, bypasses = (
            tuple(expert for expert in part if expert not in experts)
            for part in (self.hits, self.joins, self.bypasses)
        )
        return Demand(hits, joins, self.loads, bypasses)


@dataclass(slots=True)
class Counts:
    """What became of the experts that steps wanted, each counted once per step."""

    hits: int = 0
    misses: int = 0
    """Read into a slot."""
    joins: int = 0
    """Waited for a read that had begun before."""
    bypasses: int = 0

    @property
    def wanted(self) -> int:
        return self.hits + self.misses + self.joins + self.bypasses

    @property
    def hit_rate(self) -> float:
        return self.hits / self.wanted if self.wanted else 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.misses + other.misses,
            self.joins + other.joins,
            self.bypasses + other.bypasses,
        )


@dataclass(slots=True)
class Prefetches:
    """What became of early reads: ``started == useful + late + wasted + failed + pending``, each counted once."""

    started: int = 0
    useful: int = 0
    """It was ready when a step first wanted it."""
    late: int = 0
    """It was still being read then."""
    wasted: int = 0
    """It was evicted before any step wanted it."""
    failed: int = 0
    """It ended badly, or was taken back before it was read."""
    pending: int = 0
    """Being read, or in a slot and not wanted yet."""


@dataclass(slots=True)
class Evictions:
    by_demand: int = 0
    by_prefetch: int = 0
    by_resize: int = 0


class Resized(NamedTuple):
    """What a new size has done at once; experts in use go later (``take_retired``)."""

    evicted: tuple[int, ...]
    still_over: int
    """Slots in use that go as soon as they are released."""


class SlotTable:
    """Slots 0 .. num_slots - 1 and the experts in them.

    Args:
        shape: the model's experts.
        num_slots: slots of fast memory; none is allowed (everything is bypassed).
        cache: who goes when another needs room; its ``scope`` says whether all layers share the slots (``global``) or
            each has an equal part (``layer``).
        floor: slots of a layer that other layers never take; None: ``top_k`` if there are so many for every layer, or
            else none.
        bypass: a miss that is worth less than every possible victim is not admitted, unless its layer is below its
            floor. Without it every miss is, as long as anybody may go. None: as the cache wishes.

    Raises:
        InvalidParameterError: a number that cannot be.
    """

    def __init__(
        self,
        shape: ExpertShape,
        num_slots: int,
        cache: ExpertCache,
        *,
        floor: int | None = None,
        bypass: bool | None = None,
    ) -> None:
        _require_slots(num_slots)
        if floor is not None and floor < 0:
            raise InvalidParameterError(f"a layer's floor must be at least 0, got {floor}", param="floor")
        self.shape = shape
        self.cache = cache
        self.num_slots = num_slots
        """As wished; more are held for a while after a shrink, until those in use are released."""
        self.slots: list[int] = [ABSENT] * shape.total
        """Slot of every expert that is ready, by id, for kernels: a layer's part is one slice. -1 of all others."""
        self.counts: dict[str, list[Counts]] = {
            phase: [Counts() for _ in range(shape.layers)] for phase in PHASES
        }
        """By phase and layer."""
        self.prefetches = Prefetches()
        self.evictions = Evictions()
        self.num_missed = 0
        """Misses that ``num_remembered`` more slots would have made hits."""
        self.num_remembered = 0
        """So many experts that had to go, or found no slot, are remembered."""
        self._ghosts: dict[int, None] = {}
        """The latest last."""
        self._wished_floor = floor
        self._bypass = cache.bypasses if bypass is None else bypass
        self._free = list(range(num_slots))
        self._retired: list[int] = []
        self._news: list[int] = []
        self._arena_slots = num_slots
        self._loading: dict[int, int] = {}
        self._held = [0] * shape.layers
        self._kept: Counter[int] = Counter()
        self._uses: Counter[int] = Counter()
        self._shielded: list[set[int]] = [set() for _ in range(shape.layers)]
        self._unused: set[int] = set()
        self._is_over = False
        self._set_limits()

    @property
    def arena_slots(self) -> int:
        """All slots' numbers are below this; it never falls."""
        return self._arena_slots

    @property
    def floor(self) -> int:
        """Slots of a layer that no other takes now."""
        return self._floor

    @property
    def num_held(self) -> int:
        """Slots with an expert in them, ready or loading."""
        return sum(self._held)

    def held(self, layer: int) -> int:
        """Of one layer."""
        return self._held[layer]

    def state(self, expert: int) -> State:
        if self.slots[expert] != ABSENT:
            return State.READY
        return State.LOADING if expert in self._loading else State.ABSENT

    def slot_of(self, expert: int) -> int:
        """Of an expert that is ready or loading; -1 of one that is absent."""
        return self._loading.get(expert, self.slots[expert])

    def is_in_use(self, expert: int) -> bool:
        return expert in self._uses

    def use(self, routed: Routed, fetched: Container[int] | None = None, *, is_told: bool = False) -> Demand:
        """A layer's step wants these experts. Until ``release`` none of them is a victim.

        A prompt that needs most of a layer needs most of every other, too, one after the other: whoever went there
        would be missed a moment later. So such a step takes its equal share of the slots, and no others' (but where
        every miss is to be admitted).

        Args:
            fetched: of those missing only these are read, since others are computed where they are; None: all.
            is_told: the cache has heard of this step already.
        """
        if not is_told:
            self.cache.routed(routed)
        order = sorted(routed.loads, key=lambda expert: (-routed.loads[expert], expert))
        for expert in order:
            self._uses[expert] += 1
            self._kept[expert] += 1
        hits, joins, missing = self._sorted_out(order)
        self._unshield(routed.layer)
        loads, bypasses = [], []
        keeps_to_itself = self._keeps_to_itself(routed)
        for expert in missing:
            load = None
            if expert in self._ghosts:
                del self._ghosts[expert]
                self.num_missed += 1
            if fetched is None or expert in fetched:
                must = self._held[routed.layer] < self._floor
                load = self._place(expert, must=must, within=keeps_to_itself and not must)
            if load is None:
                self._remember(expert)
                bypasses.append(expert)
            else:
                self.evictions.by_demand += load.evicted is not None
                loads.append(load)
        counts = self.counts[PHASES[routed.is_prefill]][routed.layer]
        counts.hits += len(hits)
        counts.joins += len(joins)
        counts.misses += len(loads)
        counts.bypasses += len(bypasses)
        return Demand(tuple(hits), tuple(joins), tuple(loads), tuple(bypasses))

    def release(self, experts: Iterable[int]) -> None:
        """A step that had them in ``use`` needs them no longer, whatever became of their loads."""
        for expert in experts:
            _less(self._uses, expert)
            _less(self._kept, expert)
        self._settle()

    def prefetch(self, expert: int) -> Load | None:
        """Room for an expert that nobody wants yet; None if it is there, or loading, or nobody may go for it.

        Whether it is worth its victim is for whoever prefetches to know. It stays until its layer's next step at least.
        """
        if self.slot_of(expert) != ABSENT:
            return None
        load = self._place(expert, must=True)
        if load is not None:
            self.evictions.by_prefetch += load.evicted is not None
            self.prefetches.started += 1
            self.prefetches.pending += 1
            self._unused.add(expert)
            self._shielded[self.shape.layer_of(expert)].add(expert)
            self._kept[expert] += 1
        return load

    def has_room(self, expert: int) -> bool:
        """Nobody would have to go for it."""
        layer = self.shape.layer_of(expert)
        return bool(self._free) and self._held[layer] < self._limits[layer]

    def room(self, routed: Routed) -> int:
        """Missing experts of a step that would have a slot without anybody going."""
        layer = routed.layer
        limit = self._share if self._keeps_to_itself(routed) else self._limits[layer]
        return max(0, min(len(self._free), limit - self._held[layer]))

    def victim_of(self, expert: int) -> int | None:
        """Who would go for it if it were prefetched now, where there is no room; None if nobody may."""
        return self._victim(self.shape.layer_of(expert))

    def loaded(self, expert: int) -> None:
        """Its slot holds it, checked: it may be computed with."""
        self.slots[expert] = self._loading.pop(expert)
        _less(self._kept, expert)
        self._settle()

    def failed(self, expert: int) -> None:
        """Its read has ended badly, or never begins (a prefetch that is taken back): the slot is free again."""
        slot = self._loading.pop(expert)
        _less(self._kept, expert)
        if expert in self._unused:
            self.prefetches.failed += 1
        self._leave(expert, slot)
        self._settle()

    def resize(self, num_slots: int) -> Resized:
        """Another number of slots, at once where nobody uses them.

        The worst go first, and free slots before any. Slots that are given up are told by ``take_retired``; new ones
        are those given up before, then new numbers (``arena_slots``).

        Raises:
            InvalidParameterError: a negative number.
        """
        _require_slots(num_slots)
        self.num_slots = num_slots
        for layer in range(self.shape.layers):
            self._unshield(layer)
        self._set_limits()
        while self._circulating < num_slots:
            self._free.append(self._opened())
        self._is_over = True
        evicted = self._settle()
        return Resized(tuple(evicted), self._circulating - num_slots)

    def take_retired(self) -> list[int]:
        """Slots given up since the last call, whose memory may go; ``resize`` may take them into use again."""
        news, self._news = self._news, []
        return news

    def ready(self) -> Iterator[int]:
        """Experts that may be computed with now."""
        return (expert for expert, slot in enumerate(self.slots) if slot != ABSENT)

    def totals(self, phase: str) -> Counts:
        """Of all layers."""
        return sum(self.counts[phase], Counts())

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: the table contradicts itself.
        """
        where = {expert: slot for expert, slot in enumerate(self.slots) if slot != ABSENT}
        assert not where.keys() & self._loading.keys(), "an expert is ready and loading"
        where |= self._loading
        taken = sorted([*where.values(), *self._free, *self._retired])
        assert taken == list(range(self._arena_slots)), "a slot is lost, or has two owners"
        held = Counter(self.shape.layer_of(expert) for expert in where)
        assert all(held[layer] == count for layer, count in enumerate(self._held)), (
            "a layer's slots are miscounted"
        )
        assert self._open == {layer for layer in held if held[layer] > self._floor}, "a floor is misjudged"
        kept = Counter(self._uses)
        kept.update(self._loading.keys())
        kept.update(expert for shielded in self._shielded for expert in shielded)
        assert kept == self._kept, "somebody is kept for no reason"
        assert self._unused <= where.keys(), "a prefetched expert is lost"
        early = self.prefetches
        ended = early.useful + early.late + early.wasted + early.failed
        assert early.pending == len(self._unused) == early.started - ended, "a prefetch is not counted once"
        over = self._circulating - self.num_slots
        assert over <= 0 or not self._free, "a free slot is kept beyond the size"

    # --- inside ---

    @property
    def _circulating(self) -> int:
        return self._arena_slots - len(self._retired)

    def _set_limits(self) -> None:
        floor = self.shape.top_k if self._wished_floor is None else self._wished_floor
        each, rest = divmod(self.num_slots, self.shape.layers)
        self._per_layer = self.cache.scope == "layer"
        self._limits = [
            each + (layer < rest) if self._per_layer else self.num_slots for layer in range(self.shape.layers)
        ]
        self._floor = 0 if self._per_layer or self.num_slots < floor * self.shape.layers else floor
        self._open = {layer for layer, held in enumerate(self._held) if held > self._floor}

    def _sorted_out(self, order: Iterable[int]) -> tuple[list[int], list[int], list[int]]:
        hits: list[int] = []
        joins: list[int] = []
        missing: list[int] = []
        for expert in order:
            is_ready, is_loading = self.slots[expert] != ABSENT, expert in self._loading
            (hits if is_ready else joins if is_loading else missing).append(expert)
            if expert in self._unused:
                self._unused.remove(expert)
                self.prefetches.pending -= 1
                self.prefetches.useful += is_ready
                self.prefetches.late += is_loading
        return hits, joins, missing

    def _unshield(self, layer: int) -> None:
        for expert in self._shielded[layer]:
            _less(self._kept, expert)
        self._shielded[layer].clear()

    @property
    def _share(self) -> int:
        """Slots of a layer whose step takes no others'."""
        return max(self.shape.top_k, self.num_slots // self.shape.layers)

    def _keeps_to_itself(self, routed: Routed) -> bool:
        return self._bypass and routed.is_prefill and 2 * len(routed.loads) > self.shape.per_layer

    def _place(self, expert: int, *, must: bool, within: bool = False) -> Load | None:
        """
        Args:
            must: whatever it is worth.
            within: the layer's equal share of the slots, or one token's experts where that is more.
        """
        layer = self.shape.layer_of(expert)
        evicted = None
        is_full = within and self._held[layer] >= self._share
        if is_full or not self.has_room(expert):
            evicted = self._victim(layer, within)
            if evicted is None or not (must or self._pays(expert, evicted)):
                return None
            self._evict(evicted)
        slot = self._free.pop()
        self._loading[expert] = slot
        self._kept[expert] += 1
        self._hold(layer, 1)
        self.cache.admitted(expert)
        return Load(expert, slot, evicted)

    def _pays(self, expert: int, victim: int) -> bool:
        return not self._bypass or self.cache.worth(victim) <= self.cache.worth(expert)

    def _victim(self, layer: int, within: bool = False) -> int | None:
        """Of this layer, or of another that has more than its floor."""
        if self._per_layer or within:
            return self.cache.victim(self._kept, (layer,))
        layers = self._open if layer in self._open else {*self._open, layer}
        return self.cache.victim(self._kept, layers)

    def _evict(self, expert: int) -> None:
        slot, self.slots[expert] = self.slots[expert], ABSENT
        self.prefetches.wasted += expert in self._unused
        self._remember(expert)
        self._leave(expert, slot)

    def _remember(self, expert: int) -> None:
        self._ghosts[expert] = None
        while len(self._ghosts) > self.num_remembered:
            del self._ghosts[next(iter(self._ghosts))]

    def _leave(self, expert: int, slot: int) -> None:
        layer = self.shape.layer_of(expert)
        self._free.append(slot)
        self._hold(layer, -1)
        if expert in self._unused:
            self._unused.remove(expert)
            self.prefetches.pending -= 1
        if expert in self._shielded[layer]:
            self._shielded[layer].remove(expert)
            _less(self._kept, expert)
        self.cache.evicted(expert)

    def _hold(self, layer: int, more: int) -> None:
        self._held[layer] += more
        (self._open.add if self._held[layer] > self._floor else self._open.discard)(layer)

    def _settle(self) -> list[int]:
        """Give up what is beyond the size and kept by nobody; the experts that went."""
        evicted: list[int] = []
        while self._is_over and (worst := self._worst_beyond()) is not None:
            self.evictions.by_resize += 1
            evicted.append(worst)
            self._evict(worst)
        return evicted

    def _worst_beyond(self) -> int | None:
        """Who goes next for the size; None if nobody has to, or may."""
        self._give_up_free()
        beyond = [layer for layer, held in enumerate(self._held) if held > self._limits[layer]]
        self._is_over = self._circulating > self.num_slots or (self._per_layer and bool(beyond))
        if not self._is_over:
            return None
        return self.cache.victim(self._kept, beyond if self._per_layer else self._open)

    def _give_up_free(self) -> None:
        while self._free and self._circulating > self.num_slots:
            slot = self._free.pop()
            self._retired.append(slot)
            self._news.append(slot)

    def _opened(self) -> int:
        if not self._retired:
            self._arena_slots += 1
            return self._arena_slots - 1
        slot = self._retired.pop()
        if slot in self._news:
            self._news.remove(slot)
        return slot


def _less(counter: Counter[int], expert: int) -> None:
    counter[expert] -= 1
    if not counter[expert]:
        del counter[expert]


def _require_slots(num_slots: int) -> None:
    if num_slots < 0:
        raise InvalidParameterError(f"slots must be at least 0, got {num_slots}", param="slots")
