"""Lanes when they are needed, and as large as is needed: the division that follows from wishes and measured steps.

Rules:
    1. A phase that is alone gets everything, in steps as large as they may be; nothing is decided then.
    2. One step for both phases while the largest chunk that keeps the time between tokens is no crumb, and the prompts
       fit into a step or two, or lanes would get no more done of both together, or first tokens would come too late.
    3. Else lanes: the largest share for prompts with which decodes keep their time; where nothing keeps it, the share
       that comes nearest and still leaves prompts theirs.
       Where there cannot be lanes, always one step for both.
    4. A division changes when another was better several times in a row, some steps after the change before, and on
       average less than once a second. Lanes change their sizes only where that delays nobody: between their own steps,
       or within them.
    5. What is aimed at lies below the wish: by as much as steps take longer than foreseen, and by a margin that follows
       what is attained.
    6. Where steps take over other units while they run, a step of prompts ends with a prompt and may take its time.

The idea of shares that follow attainment is semi-PD's (arXiv 2504.19867), to split only when a violation is foreseen is
DuetServe's (arXiv 2511.04791); the equations are Braid's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from braid.core.request import NO_SLO, Slo
from braid.policy.phases.attainment import Attainment
from braid.policy.phases.curves import CORES, Curves
from braid.policy.phases.latency import Latency, Load, Prompts
from braid.policy.phases.policy import Demand, Division, StepSeen
from braid.policy.phases.switching import Switching

TBT_S = 0.1
"""Aimed at where nobody wishes anything: ten tokens a second, about twice as fast as people read."""
TTFT_S = 10.0
"""Where nobody wishes anything, a prompt that waits longer than this is given more of the machine: the usual advice is
that nobody stays with a task beyond ten seconds without an answer."""
WHOLE = 1 << 30
"""Tokens of a chunk that only the step's budget limits."""
SMALLEST_CHUNK = 32
"""Tokens, if there are so many. A smaller one reads the weights and the KV before it for next to no work."""
CRUMB = 64
"""Where the largest chunk that keeps the wish is smaller than this, lanes are better: measured with a toy on two cores,
they bring prompts forward as fast as chunks of 64, and decodes 1.6 times as fast."""
SMALLEST_LANE_CHUNK = 128
"""The same in a lane of its own, where a step delays nobody else."""
LANE_STEP_S = 1.0
"""Where lanes change their sizes between two steps only, one of the lane of prompts should end by then. Shorter ones
read the KV before them so often that first tokens came a tenth later in simulations, with longer ones 2 % earlier.
Elsewhere a step ends with the next prompt."""
TTFT_PART = 0.25
"""Nor should it take more than this of the wished time to the first token."""
MIN_SHARE = 0.125
"""Of the machine, for prompts, however much decodes want."""
AGED_SHARE = 0.5
"""The same once the oldest has waited twice as long as it wished."""
NUM_SPLITS = 8
"""So many sizes of lanes are weighed, at most."""
FITS, STILL_FITS = 2.0, 1.0
"""Prompts that so many chunks hold pass in one step for both before lanes pay; the second where lanes hold already."""
NEAR = 1.1
"""Where nothing keeps the wish, times between tokens may be so much longer than the shortest there are, so that prompts
get more of the machine."""
HELD = 0.05
"""So much better is what holds already, since a change has a cost and predictions have errors."""


class Choice(NamedTuple):
    """A division and what is foreseen of it: seconds between tokens, and tokens of prompts per second."""

    is_mixed: bool
    prefill_units: int
    chunk: int
    tbt_s: float
    rate: float

    @property
    def key(self) -> int:
        """0 for one step for both, else the units of the lane of prompts."""
        return 0 if self.is_mixed else self.prefill_units


class Aim(NamedTuple):
    """What a division is to reach.

    Args:
        tbt_s, ttft_s: the wishes, or what is usual.
        target_s, mixed_s: foreseen between tokens, so far below the wish that nearly every step keeps it: of a lane
            of decodes, and of one step for both.
        deadline_s: for first tokens; infinite where nobody wishes one.
        lateness: of the oldest prompt, from 0 to 1.
        min_prefill: units that are left to prompts in any case.
    """

    tbt_s: float
    ttft_s: float
    target_s: float
    mixed_s: float
    deadline_s: float
    lateness: float
    min_prefill: int


class Auto:
    """Args:
    slo: what holds for requests that wish nothing of their own.
    can_mix: whether one step may hold both phases.
    has_lanes: whether there can be a lane for each.
    curves: of the machine's units, before they are measured.
    """

    def __init__(
        self, slo: Slo = NO_SLO, *, can_mix: bool = True, has_lanes: bool = True, curves: Curves = CORES
    ) -> None:
        self.is_split = has_lanes
        self.name = "auto" if can_mix else "split"
        self._slo = slo
        self._can_mix = can_mix
        self._latency = Latency(curves)
        self._attained = Attainment()
        self._switching = Switching()
        self._num_units = 1
        self._is_feasible = True
        self._held = 0
        """The key of what holds."""
        self._split_key = 0
        """The latest that was not 0."""
        self._is_new = True
        self._division = Division(True, 1, 1, WHOLE)
        self._decided, self._target_s, self._num_prefill = self._division, 0.0, 0
        """Of the latest decision while both phases had work."""

    # -- what it is told -----------------------------------------------------------------------------------

    def stepped(self, step: StepSeen, now: float) -> None:
        self._latency.seen(step, self._num_units)
        self._switching.stepped(step.lane)

    def answered(self, seconds: float, limit: float, now: float, *, is_first: bool) -> None:
        wish = self._slo.ttft_s if is_first else self._slo.tbt_s
        usual = TTFT_S if is_first else TBT_S
        limit = _first_finite(limit, wish, usual)
        self._attained.answered(seconds <= limit, is_first=is_first)
        if not is_first and self._division.predicted_tbt_s is not None:
            self._attained.learn(seconds <= limit, can_tighten=self._is_feasible)

    # -- what it decides -----------------------------------------------------------------------------------

    def divide(self, demand: Demand) -> Division:
        if self.is_split:
            return self._divide(demand)
        # One unit, that cannot be divided: the whole machine.
        division = self._divide(demand._replace(num_units=1))
        return division._replace(prefill_units=demand.num_units, decode_units=demand.num_units)

    def _divide(self, demand: Demand) -> Division:
        self._num_units = demand.num_units
        if demand.num_prefill and demand.num_decodes:
            aim = self._aim(demand)
            wanted = self._best(demand, aim)
            division = self._divided(self._settle(demand, aim, wanted), demand, aim)
            self._decided, self._target_s, self._num_prefill = division, aim.target_s, demand.num_prefill
        else:
            division = self._alone(demand)
        self._switching.divided()
        self._division = division
        return division

    def _alone(self, demand: Demand) -> Division:
        """The lanes of the last division; the scheduler gives the one that has work everything."""
        held = self._held_key(demand)
        prefill, decode = self._units(held, demand.num_units)
        what = "prompts" if demand.num_prefill else "decodes" if demand.num_decodes else "nothing"
        chunk = _next_prompt(demand) if demand.can_reshare and demand.num_prefill else WHOLE
        return Division(not held, prefill, decode, chunk, why=f"{what} alone")

    def _held_key(self, demand: Demand) -> int:
        """What holds, as far as this machine can do it."""
        if demand.num_units < 2:
            return 0
        if self._held == 0 and not self._can_mix:
            return max(1, demand.num_units // 2)
        return min(self._held, demand.num_units - 1)

    def _aim(self, demand: Demand) -> Aim:
        tbt_s = _first_finite(demand.tbt_s, self._slo.tbt_s, TBT_S)
        deadline_s = _first_finite(demand.ttft_s, self._slo.ttft_s)
        ttft_s = _first_finite(deadline_s, TTFT_S)
        lateness = min(1.0, max(0.0, demand.waited_s / ttft_s - 1)) if ttft_s > 0 else 1.0
        share = MIN_SHARE + (AGED_SHARE - MIN_SHARE) * lateness
        floor = min(max(1, round(share * demand.num_units)), max(1, demand.num_units - 1))
        wanted_s = self._attained.margin * tbt_s
        target_s, mixed_s = (
            wanted_s / self._latency.overrun(with_prompts=is_mixed) for is_mixed in (False, True)
        )
        return Aim(tbt_s, ttft_s, target_s, mixed_s, deadline_s, lateness, floor)

    def _best(self, demand: Demand, aim: Aim) -> Choice:
        """Rules 2 and 3."""
        mixed = self._mixed(demand, aim)
        if demand.num_units < 2:
            return mixed
        split = self._best_split(demand, aim)
        if not self._can_mix:
            return split
        if split.tbt_s > mixed.tbt_s:
            return mixed
        room = demand.max_num_batched_tokens - demand.num_decodes
        crumb = min(CRUMB * self._bias(0), demand.num_prefill, room)
        if mixed.tbt_s > aim.mixed_s * (1 + 1e-9) or mixed.chunk < crumb:
            return split
        # The rest of a prompt always fits at last; that is no reason to compute it otherwise than it was begun.
        is_rest = self._held and demand.next_start and demand.num_prefill <= demand.next_prefill
        if not is_rest and demand.num_prefill <= (STILL_FITS if self._held else FITS) * mixed.chunk:
            return mixed
        return split if self._pays(demand, aim, mixed, split) else mixed

    def _pays(self, demand: Demand, aim: Aim, mixed: Choice, split: Choice) -> bool:
        """Whether lanes get more done of prompts and decodes together, in time for first tokens.

        What is done of either is counted in seconds that it would take alone on the whole machine.
        """
        prompts, decodes = _prompts(demand), _decodes(demand)
        token_s = self._token_s(demand, split.chunk)
        decode_s = self._latency.step_s("mixed", demand.num_units, demand.num_units, decodes)
        bias = 1 - HELD if self._held else 1 + HELD
        done = [choice.rate * token_s + decode_s / choice.tbt_s for choice in (mixed, split)]
        if done[1] < done[0] * bias:
            return False
        left_s = prompts.num * max(1.0, self._token_s(demand, prompts.num) / token_s)
        ends = [demand.waited_s + left_s / choice.rate for choice in (mixed, split)]
        return ends[1] <= max(ends[0], aim.deadline_s * (2 - bias))

    def _token_s(self, demand: Demand, num: int) -> float:
        """Seconds of a prompt token among the next ``num``, alone on the whole machine."""
        load = Load(num, _prompts(demand).pairs(num))
        return self._latency.step_s("mixed", demand.num_units, demand.num_units, load) / num

    def _bias(self, key: int) -> float:
        """Limits are a little wider for what holds."""
        return 1 - HELD if key == self._held and not self._is_new else 1 + HELD

    def _mixed(self, demand: Demand, aim: Aim) -> Choice:
        """The largest chunk that keeps the target. Prompts get half of a step's time where decodes alone miss it, and
        where they are late and there are no lanes."""
        units, prompts, decodes = demand.num_units, _prompts(demand), _decodes(demand)
        alone = self._latency.step_s("mixed", units, units, decodes)
        late = aim.lateness if units < 2 else 0.0
        target = max(aim.mixed_s, alone * (1 + late) if alone < aim.mixed_s else 2 * alone)
        chunk = self._latency.chunk("mixed", units, units, prompts, decodes, target)
        chunk = max(chunk, min(SMALLEST_CHUNK, prompts.num))
        chunk = max(1, min(chunk, demand.max_num_batched_tokens - demand.num_decodes))
        load = decodes._replace(num_prefill=chunk, num_pairs=prompts.pairs(chunk))
        seconds = self._latency.step_s("mixed", units, units, load)
        return Choice(True, units, chunk, seconds, chunk / seconds)

    def _best_split(self, demand: Demand, aim: Aim) -> Choice:
        """The largest share of prompts that keeps the target; else the wish; else that is nearly as good as any."""
        units = demand.num_units
        sizes = {max(1, round(units * part / NUM_SPLITS)) for part in range(1, NUM_SPLITS)}
        sizes = {size for size in sizes | {self._held} if aim.min_prefill <= size < units} or {
            aim.min_prefill
        }
        times = {size: self._decode_s(demand, size) for size in sorted(sizes, reverse=True)}
        for limit in (aim.target_s, aim.tbt_s, NEAR * min(times.values())):
            for size, seconds in times.items():
                if seconds <= limit * (2 - self._bias(size)):
                    return self._split(demand, aim, size)
        return self._split(demand, aim, min(sizes))

    def _decode_s(self, demand: Demand, size: int) -> float:
        """Of a step beside a lane of prompts of ``size``."""
        units = demand.num_units
        return self._latency.step_s("decode", units - size, units, _decodes(demand), is_shared=True)

    def _split(self, demand: Demand, aim: Aim, size: int) -> Choice:
        units, prompts = demand.num_units, _prompts(demand)
        chunk = _next_prompt(demand)
        if not demand.can_reshare:
            limit = min(LANE_STEP_S, TTFT_PART * aim.ttft_s)
            chunk = self._latency.chunk("prefill", size, units, prompts, Load(), limit, is_shared=True)
            chunk = max(chunk, min(SMALLEST_LANE_CHUNK, prompts.num))
        chunk = min(chunk, demand.max_num_batched_tokens)
        load = Load(chunk, prompts.pairs(chunk))
        seconds = self._latency.step_s("prefill", size, units, load, is_shared=True)
        return Choice(False, size, chunk, self._decode_s(demand, size), chunk / seconds)

    def _settle(self, demand: Demand, aim: Aim, wanted: Choice) -> Choice:
        """Rule 4: what is wanted, or what holds."""
        held = self._held_key(demand)
        if self._is_new or held != self._held:
            self._is_new, self._held = False, wanted.key
            return wanted
        if self._switching.may_switch(held, wanted.key, demand.now, at_once=demand.can_reshare):
            self._held = wanted.key
            self._attained.forget()
            return wanted
        if wanted.key == held:
            return wanted
        return self._split(demand, aim, held) if held else self._mixed(demand, aim)

    def _divided(self, choice: Choice, demand: Demand, aim: Aim) -> Division:
        self._split_key = choice.key or self._split_key
        prefill, decode = self._units(choice.key, demand.num_units)
        self._is_feasible = choice.tbt_s <= aim.tbt_s
        sign = "<=" if choice.tbt_s <= aim.target_s else ">"
        how = "one step for both" if choice.is_mixed else f"lanes of {prefill} and {decode} units"
        why = (
            f"{how}, chunks of {choice.chunk}: {choice.tbt_s:.4f} s between tokens {sign} "
            f"{self._attained.margin:.2f} x {aim.tbt_s:.4g} s, {choice.rate:.0f} prompt tokens/s; "
            f"{demand.num_decodes} decodes over {demand.num_context} tokens, {demand.num_prefill} prompt tokens, "
            f"waited {demand.waited_s:.2f} s of {aim.ttft_s:.4g} s"
        )
        return Division(choice.is_mixed, prefill, decode, choice.chunk, why=why, predicted_tbt_s=choice.tbt_s)

    def _units(self, key: int, num_units: int) -> tuple[int, int]:
        """Of both lanes. With one step for both, for decodes beside the last step of lanes that were given up."""
        if num_units < 2:
            return num_units, num_units
        prefill = min(key or self._split_key or num_units // 2, num_units - 1)
        return prefill if key else num_units, num_units - prefill

    # -- what it tells -------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, float]:
        division, decided = self._division, self._decided
        return {
            "phases_is_mixed": float(division.is_mixed),
            "phases_prefill_units": division.prefill_units,
            "phases_decode_units": division.decode_units,
            "phases_chunk_tokens": 0 if decided.max_prefill == WHOLE else decided.max_prefill,
            "phases_predicted_tbt_seconds": decided.predicted_tbt_s or 0.0,
            "phases_target_tbt_seconds": self._target_s,
            "phases_prompt_tokens": self._num_prefill,
            "phases_switches": self._switching.num,
            "phases_step_error": self._latency.residual,
            **self._attained.describe(),
        }


def _first_finite(*values: float) -> float:
    return next((value for value in values if value < inf), values[-1])


def _next_prompt(demand: Demand) -> int:
    """A chunk that ends with the next prompt, so that its first token waits for no other; as large as pays."""
    return max(demand.next_prefill, min(SMALLEST_LANE_CHUNK, demand.num_prefill))


def _prompts(demand: Demand) -> Prompts:
    return Prompts(
        demand.num_prefill, demand.next_start, max(1, min(demand.next_prefill, demand.num_prefill))
    )


def _decodes(demand: Demand) -> Load:
    return Load(num_decodes=demand.num_decodes, num_context=demand.num_context)
