"""Which expert of a later layer is fetched before anybody needs it, if any: only where it is foreseen to pay.

Later layers' routers, asked with the hidden state of the present one, foretell who will be needed (HybriMoE, arXiv
2504.05897: the residual stream changes slowly). Acting on it lost wall time wherever bytes were the limit, so an expert
is fetched only if

    precision x gain - (delay of demanded experts + loss of the one that goes + time of predicting) > 0

where gain is what the layer's timeline ends earlier, and only while the link has nothing else to do. Nothing is ever
queued: the holder asks again whenever the link is idle, so a demanded expert waits for one transfer at most. Asking
routers takes time whether or not anything is fetched; where that is more than is won, they are asked but now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import nlargest
from typing import NamedTuple, Protocol

from braid.core.experts import ExpertShape
from braid.policy.experts.dispatch import gain, plan
from braid.policy.experts.policy import Activated, ExpertCache, ExpertTimes
from braid.policy.experts.trial import Trial

MAX_DISTANCE = 3
"""Layers ahead."""
PRECISION = (0.8, 0.75, 0.7)
"""Of predictions at distance 1, 2, 3, before any was checked: somewhat below what is published for Qwen3 (0.886, and
0.035 to 0.04 less with every layer), since those that are missing are foretold worse than those that are held."""
PRIOR = 32
"""Predicted experts that the numbers above count for."""
FADE = 0.998
"""Per sample, of what was learnt."""
REGRET = 0.3
"""Of those that went for a prefetch, so many are missed before ``HORIZON`` steps, before anybody has counted."""
HORIZON = 8
"""Steps in which one that went may be missed."""
MOST_WORTH = 3.0
"""One that goes is not thought to be missed more than so much likelier than others."""
TRIED = 3
"""Of the experts that gain most; others would have the same costs."""
WEIGHED = 2
"""Loads per layer that are weighed: the heaviest gain most."""


ASKED, REST = 8, 120
"""Steps after which predictions that cost more than they win are left out, and for how long."""


class Residency(Protocol):
    """What a prefetcher asks of whoever holds the experts; `braid.policy.experts.slots.SlotTable` is one."""

    @property
    def shape(self) -> ExpertShape: ...

    @property
    def cache(self) -> ExpertCache: ...

    def slot_of(self, expert: int) -> int:
        """-1 where it is neither in fast memory nor on its way."""
        ...

    def has_room(self, expert: int) -> bool:
        """Nobody would have to go for it."""
        ...

    def victim_of(self, expert: int) -> int | None:
        """Who would have to go; None if nobody may. Changes nothing."""
        ...


class Prefetch(NamedTuple):
    """One expert to read now.

    Args:
        victim: who goes for it; None where a slot is free.
        value_s: seconds that it is expected to save, all costs taken off.
    """

    expert: int
    victim: int | None
    value_s: float


class _Foretold(NamedTuple):
    loads: Mapping[int, int]
    scores: Mapping[int, float]
    missing: frozenset[int]
    """Those that were not held then."""


class Prefetcher:
    """Pure: it is told of every prediction, routing, landing and step, and asked when the link is idle.

    The course of one layer's step::

        prefetcher.routed(layer, loads, num_missing)     # before the table's ``use``
        if prefetcher.is_on: prefetcher.predicted(layer + d, d, loads, scores, seconds)      # d in ``distances``
        found = prefetcher.next(times, link_idle=...)    # whenever no demanded read is under way or waits
        load = table.prefetch(found.expert)              # read it; where it is None: prefetcher.landed(found.expert)
        prefetcher.landed(found.expert)                  # its read has ended, well, badly or cancelled

    and ``step_took`` after each step of all layers.

    Args:
        residency: who is held. Another may take its place at any time (``prefetcher.residency = ...``).
        mode: ``off``; ``on`` whatever it costs; ``auto`` only as long as steps are shorter with it
            (`braid.policy.experts.trial.Trial`).
    """

    def __init__(self, residency: Residency, *, mode: str = "auto") -> None:
        self.residency = residency
        self.trial = Trial(mode)
        self._layers = residency.shape.layers
        self._layer = -1
        self._foretold: dict[int, dict[int, _Foretold]] = {}
        """By layer and by how many layers before it."""
        self._in_flight: int | None = None
        self._hits = [PRIOR * precision for precision in PRECISION]
        self._checked = [float(PRIOR)] * MAX_DISTANCE
        self._bursts = _Mean(0.5)
        """Share of layers in which something was missing."""
        self._step_s = _Mean(0.0)
        self._predict_s = _Mean(0.0)
        """Per predicted expert that was missing."""
        self._regret = _Mean(REGRET)
        self._worth = _Mean(0.0)
        """Of those that went."""
        self._gone: dict[int, int] = {}
        """Until when one that went is looked out for, in layers routed."""
        self._num_routed = 0
        self._spent_s = self._won_s = 0.0
        """In this step: by predicting, and as far as it is foreseen by fetching."""
        self._balance = _Mean(0.0)
        """Of steps in which routers were asked."""
        self._asked = self._rest = 0
        """Steps; of the second those that are left."""

    @property
    def is_on(self) -> bool:
        """Whether later layers' routers are worth asking in decodes at present; changes between steps only."""
        return self.trial.is_on and not self._rest

    @property
    def distances(self) -> range:
        """How many layers ahead to predict; the first is worth most."""
        return range(1, MAX_DISTANCE + 1)

    def precision(self, distance: int) -> float:
        """Of experts that were predicted so many layers ahead and missing then, the share that was needed."""
        return self._hits[distance - 1] / self._checked[distance - 1]

    # -- what it is told -----------------------------------------------------------------------------------

    def routed(self, layer: int, loads: Mapping[int, int], num_missing: int) -> None:
        """A layer's router has chosen ``loads`` (rows by expert id), of which so many are neither held nor coming."""
        self._layer = layer
        self._num_routed += 1
        self._bursts.add(float(num_missing > 0))
        for distance, told in self._foretold.pop(layer, {}).items():
            self._check(distance, told.missing, loads)
        self._look_out(loads)

    def predicted(
        self,
        layer: int,
        distance: int,
        loads: Mapping[int, int],
        scores: Mapping[int, float] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """What ``layer``'s router says of the hidden state ``distance`` layers before it.

        Args:
            distance: one of ``distances``.
            loads: rows by expert id, of those that it would choose.
            scores: mean over the rows, by id; the higher is fetched first of experts that gain as much.
            seconds: that it took to find out.
        """
        missing = frozenset(expert for expert in loads if not self._holds(expert))
        self._foretold.setdefault(layer, {})[distance] = _Foretold(loads, scores or {}, missing)
        self._predict_s.add(seconds / max(1, len(missing)))
        self._spent_s += seconds

    def landed(self, expert: int) -> None:
        """Its transfer has ended, well, badly or not at all: the next may begin."""
        if self._in_flight == expert:
            self._in_flight = None

    def step_took(self, seconds: float, rows: int, *, is_prefill: bool = False) -> None:
        """A step of all layers, with so many rows. Steps of prompts are not compared: they differ too much."""
        self._layer = -1
        self._foretold.clear()
        won_s, self._spent_s, self._won_s = self._won_s - self._spent_s, 0.0, 0.0
        if is_prefill:
            return
        self._balanced(won_s)
        self._step_s.add(seconds)
        self.trial.step_took(seconds, rows)

    # -- what it decides -----------------------------------------------------------------------------------

    def next(self, times: ExpertTimes, *, link_idle: bool) -> Prefetch | None:
        """What to read now, if anything. Whoever is returned counts as in flight until ``landed``."""
        if not link_idle or self._in_flight is not None or not self.trial.is_on:
            return None
        candidates = []
        for layer, by_distance in self._foretold.items():
            distance = min(by_distance)
            told = by_distance[distance]
            for expert, gain_s in self._gains(layer, told, times):
                value_s = self.precision(distance) * gain_s
                candidates.append((value_s, told.scores.get(expert, 0.0), -expert, distance))
        costs_s = self._delay_s(times) + self._predict_s.value if candidates else 0.0
        for value_s, _, negative, distance in nlargest(TRIED, candidates):
            found = self._with_room(-negative, value_s - costs_s, distance, times)
            if found is not None:
                self._begin(found)
                return found
        return None

    def describe(self) -> dict[str, float | str]:
        """What was learnt, for whoever watches."""
        return {
            "state": self.trial.state,
            "why": self.trial.why,
            **{f"precision_{distance}": self.precision(distance) for distance in self.distances},
            "missed_again": self._regret.value,
            "layers_with_misses": self._bursts.value,
            "resting_steps": self._rest,
        }

    def _gains(self, layer: int, told: _Foretold, times: ExpertTimes) -> list[tuple[int, float]]:
        """Of the missing experts that are foretold to have the largest loads. Those of one load gain the same."""
        missing = [expert for expert in told.loads if not self._holds(expert)]
        if not missing or layer <= self._layer:
            return []
        lead_s = (layer - self._layer) * self._step_s.value / self._layers
        ready_s = max(0.0, times.link_busy_s - lead_s)
        absent = frozenset(missing)
        needed = [
            Activated(expert, load, None if expert in absent else 0.0) for expert, load in told.loads.items()
        ]
        by_load: dict[int, list[int]] = {}
        for expert in missing:
            by_load.setdefault(told.loads[expert], []).append(expert)
        found = []
        for load in sorted(by_load, reverse=True)[:WEIGHED]:
            gain_s = gain(needed, by_load[load][0], times, ready_s=ready_s)
            found += [(expert, gain_s) for expert in by_load[load]]
        return found

    def _with_room(self, expert: int, value_s: float, distance: int, times: ExpertTimes) -> Prefetch | None:
        """None if it does not pay."""
        if value_s <= 0:
            return None
        if self.residency.has_room(expert):
            return Prefetch(expert, None, value_s)
        victim = self.residency.victim_of(expert)
        if victim is None or self._is_foretold(victim):
            return None
        value_s -= self._loss_s(victim, self.precision(distance), times)
        return Prefetch(expert, victim, value_s) if value_s > 0 else None

    def _is_foretold(self, expert: int) -> bool:
        return any(expert in told.loads for found in self._foretold.values() for told in found.values())

    def _holds(self, expert: int) -> bool:
        return self.residency.slot_of(expert) >= 0

    def _delay_s(self, times: ExpertTimes) -> float:
        """Expected, of the first layer that misses something while the transfer lasts."""
        layer_s = self._step_s.value / self._layers
        missing = self._bursts.value
        if layer_s <= 0:
            return missing * times.link_busy_s
        delay_s, left_s, chance = 0.0, times.link_busy_s - layer_s, 1.0
        while left_s > 0 and chance > 0.01:
            delay_s += chance * missing * left_s
            chance *= 1 - missing
            left_s -= layer_s
        return delay_s

    def _loss_s(self, victim: int, precision: float, times: ExpertTimes) -> float:
        """Where the prediction is right, somebody would have gone anyway, a moment later; else a miss may follow."""
        mean = self._worth.value
        relative = min(MOST_WORTH, self.residency.cache.worth(victim) / mean) if mean > 0 else 1.0
        missed = min(1.0, self._regret.value * relative)
        alone = Activated(victim, 1, None)
        miss_s = plan([alone], times).makespan_s - plan([alone._replace(ready_s=0.0)], times).makespan_s
        return (1 - precision) * missed * max(0.0, miss_s)

    def _begin(self, prefetch: Prefetch) -> None:
        self._in_flight = prefetch.expert
        self._won_s += prefetch.value_s + self._predict_s.value
        if prefetch.victim is not None:
            self._worth.add(max(0.0, self.residency.cache.worth(prefetch.victim)))
            self._gone[prefetch.victim] = self._num_routed + HORIZON * self._layers

    def _balanced(self, won_s: float) -> None:
        """After a step: whether routers are asked in the next."""
        if self._rest:
            self._rest -= 1
        elif self.trial.is_on:
            self._balance.add(won_s)
            self._asked += 1
            if self._asked >= ASKED and self._balance.value < 0:
                self._rest, self._asked, self._balance = REST, 0, _Mean(0.0)

    def _check(self, distance: int, missing: Collection[int], loads: Mapping[int, int]) -> None:
        place = distance - 1
        fade = FADE ** len(missing)
        self._hits[place] = self._hits[place] * fade + sum(expert in loads for expert in missing)
        self._checked[place] = self._checked[place] * fade + len(missing)

    def _look_out(self, loads: Mapping[int, int]) -> None:
        """For those that went: whether they are missed before their time is over."""
        if not self._gone:
            return
        for expert in [expert for expert in self._gone if expert in loads]:
            del self._gone[expert]
            self._regret.add(1.0)
        for expert, until in list(self._gone.items()):
            if until > self._num_routed:
                break
            del self._gone[expert]
            self._regret.add(0.0)


class _Mean:
    """Of what was seen, the latest counting most; before that, what is given."""

    __slots__ = ("_num", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self._num = 0

    def add(self, sample: float) -> None:
        self._num = min(self._num + 1, 64)
        self.value += (sample - self.value) / self._num
