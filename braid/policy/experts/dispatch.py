"""Who computes which expert of a layer, and which are fetched: three timelines, simulated before anything begins.

The method is HybriMoE's (arXiv 2504.05897, section on scheduling inside a layer) with two repairs. There are three
queues: the fast side's, with the experts that it holds, heaviest first, and those that landed; the slow side's, with
the missing ones, lightest first, and when there are none left, the lightest of the fast side's; and the link's, with
the missing ones, heaviest first. The task that would end first is given away, until no expert is left.

The repairs: a transfer counts with what the fast side then computes, since nothing is done when it ends; and the plans
"all missing ones on the slow side" and "all fetched" win where they are better. Where all experts have the same load,
as in decodes of one request, only their number on the slow side matters, and every number is tried.

Where the slow side computes nothing (memory above a disk), all missing ones are fetched, and a plan is an order: the
heaviest is read first, and what is held is computed meanwhile.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from math import ceil, inf, isinf

from braid.policy.experts.policy import Activated, DispatchPlan, ExpertTimes

NOTHING = DispatchPlan((), (), (), 0.0, "all-fetched")


def plan(activated: Sequence[Activated], times: ExpertTimes, *, backlog_s: float = 0.0) -> DispatchPlan:
    """The best of the plans that are tried; where several are as good, the one that fetches least.

    Args:
        activated: every expert that the layer needs, once.
        backlog_s: until the link is free.

    Takes a few microseconds per expert.
    """
    if not activated:
        return NOTHING
    if isinf(times.slow_s):
        return _arranged(_Layer(activated, times, backlog_s), frozenset(), "all-fetched")
    load = activated[0].load
    for one in activated:
        if one.load != load:
            break
    else:
        return _even(activated, times, backlog_s)
    layer = _Layer(activated, times, backlog_s)
    plans = [_arranged(layer, frozenset(one.expert for one in layer.missing), "all-slow")]
    if layer.missing:
        plans.append(_arranged(layer, frozenset(), "all-fetched"))
    plans.append(_arranged(layer, _greedy(layer), "greedy"))
    return min(plans, key=lambda plan: (plan.makespan_s, len(plan.fetch)))


def makespan(
    activated: Sequence[Activated],
    times: ExpertTimes,
    *,
    fast: Sequence[int],
    slow: Sequence[int],
    fetch: Sequence[int],
    backlog_s: float = 0.0,
) -> float:
    """When all is done, in seconds, if the three sides work through these experts in this order.

    A side waits for what it is to compute next. A transfer takes ``link_busy_s`` if the processor computes when it
    begins: the slow side where there is one, else the fast side.
    """
    needed = {one.expert: one for one in activated}
    slow_s = _slow_s([needed[expert].load for expert in slow], times)
    ready = {expert: needed[expert].ready_s for expert in fast}
    ready.update(_landings(needed, times, fast, fetch, slow_s, backlog_s))
    fast_s = 0.0
    for expert in fast:
        begin = ready[expert]
        assert begin is not None, f"expert {expert} is on the fast side, but neither held nor fetched"
        if begin > fast_s:
            fast_s = begin
        fast_s += times.fast_s + times.fast_row_s * needed[expert].load
    return max(fast_s, slow_s)


def landings(
    activated: Sequence[Activated], times: ExpertTimes, plan: DispatchPlan, *, backlog_s: float = 0.0
) -> dict[int, float]:
    """When each of a plan's transfers ends, in seconds."""
    needed = {one.expert: one for one in activated}
    slow_s = _slow_s([needed[expert].load for expert in plan.slow], times)
    return _landings(needed, times, plan.fast, plan.fetch, slow_s, backlog_s)


def gain(
    activated: Sequence[Activated],
    expert: int,
    times: ExpertTimes,
    *,
    ready_s: float = 0.0,
    backlog_s: float = 0.0,
) -> float:
    """Seconds that a layer would be done earlier if ``expert``, one that is missing, were held ``ready_s`` from its
    beginning on. Never negative: nobody has to use it.
    """
    moved = [one._replace(ready_s=ready_s) if one.expert == expert else one for one in activated]
    before = plan(activated, times, backlog_s=backlog_s).makespan_s
    return max(0.0, before - plan(moved, times, backlog_s=backlog_s).makespan_s)


class _Layer:
    """What a layer needs, sorted once: ``held`` heaviest first, ``coming`` by when, ``missing`` lightest first."""

    __slots__ = ("backlog_s", "coming", "held", "missing", "needed", "times")

    def __init__(self, activated: Sequence[Activated], times: ExpertTimes, backlog_s: float) -> None:
        self.times = times
        self.backlog_s = backlog_s
        self.held: list[Activated] = []
        self.coming: list[Activated] = []
        self.missing: list[Activated] = []
        for one in activated:
            if one.ready_s is None:
                self.missing.append(one)
            elif one.ready_s > 0:
                self.coming.append(one)
            else:
                self.held.append(one)
        self.held.sort(key=lambda one: (-one.load, one.expert))
        self.coming.sort(key=lambda one: (one.ready_s, -one.load, one.expert))
        self.missing.sort(key=lambda one: (one.load, -one.expert))
        self.needed = {one.expert: one for one in activated}


def _arranged(layer: _Layer, slow: frozenset[int], name: str) -> DispatchPlan:
    """The best order once it is known who is on the slow side.

    Order does not matter there. The heaviest is fetched first, since transfers take equally long and it has most to be
    computed afterwards (Johnson's rule); and the fast side takes what is ready first.
    """
    fetch = tuple(one.expert for one in reversed(layer.missing) if one.expert not in slow)
    there = [one.expert for one in (*layer.held, *layer.coming) if one.expert not in slow]
    fast = (*there, *fetch)
    if layer.coming and fetch:
        fast = _by_readiness(layer, fast, fetch, slow)
    rest = sorted(
        slow, key=lambda expert: (layer.needed[expert].ready_s is not None, layer.needed[expert].load, expert)
    )
    seconds = _makespan(layer, fast, rest, fetch)
    return DispatchPlan(fast, tuple(rest), fetch, seconds, name)


def _makespan(layer: _Layer, fast: Sequence[int], slow: Sequence[int], fetch: Sequence[int]) -> float:
    return makespan(
        tuple(layer.needed.values()),
        layer.times,
        fast=fast,
        slow=slow,
        fetch=fetch,
        backlog_s=layer.backlog_s,
    )


def _slow_s(loads: Sequence[int], times: ExpertTimes) -> float:
    """When the slow side is done with so many rows of so many experts."""
    if not loads:
        return 0.0
    return times.slow_first_s + len(loads) * times.slow_s + sum(loads) * times.slow_row_s


def _landings(
    needed: Mapping[int, Activated],
    times: ExpertTimes,
    fast: Sequence[int],
    fetch: Sequence[int],
    slow_s: float,
    backlog_s: float,
) -> dict[int, float]:
    """When each transfer ends."""
    landed: dict[int, float] = {}
    now = backlog_s
    if not isinf(times.slow_s) or times.link_s == times.link_busy_s:
        for expert in fetch:
            now += times.link_busy_s if now < slow_s else times.link_s
            landed[expert] = now
        return landed
    # The fast side is busy until it is done with all that was there before, whatever the order.
    fetched = frozenset(fetch)
    coming = [
        (needed[expert].ready_s or 0.0, needed[expert].load) for expert in fast if expert not in fetched
    ]
    coming.sort(reverse=True)
    busy_s = 0.0
    for expert in fetch:
        while coming and coming[-1][0] <= now:
            ready_s, load = coming.pop()
            busy_s = max(busy_s, ready_s) + times.fast_s + times.fast_row_s * load
        now += times.link_busy_s if now < busy_s else times.link_s
        landed[expert] = now
        insort(coming, (now, needed[expert].load), key=lambda one: -one[0])
    return landed


def _by_readiness(
    layer: _Layer, fast: Sequence[int], fetch: Sequence[int], slow: frozenset[int]
) -> tuple[int, ...]:
    """Whoever comes first is computed first."""
    slow_s = _slow_s([layer.needed[expert].load for expert in slow], layer.times)
    landed = _landings(layer.needed, layer.times, fast, fetch, slow_s, layer.backlog_s)
    return tuple(sorted(fast, key=lambda expert: landed.get(expert, layer.needed[expert].ready_s or 0.0)))


def _greedy(layer: _Layer) -> frozenset[int]:
    """Who is on the slow side, if the task that would end first is given away until there is none."""
    times, missing, held = layer.times, layer.missing, layer.held
    first, last = 0, len(missing)  # those that nobody took are missing[first:last]
    heaviest, lightest = 0, len(held)
    landed = [(one.ready_s or 0.0, one.load) for one in layer.coming]
    place = 0
    fast_s = slow_s = 0.0
    link_s = layer.backlog_s
    slow: list[int] = []
    while first < last or heaviest < lightest:
        fast_end = slow_end = link_end = inf
        is_landed = heaviest == lightest or (
            place < len(landed) and landed[place][0] <= fast_s and landed[place][1] > held[heaviest].load
        )
        if not is_landed:
            fast_end = fast_s + times.fast_s + times.fast_row_s * held[heaviest].load
        elif place < len(landed):
            ready_s, load = landed[place]
            fast_end = max(fast_s, ready_s) + times.fast_s + times.fast_row_s * load
        if first < last:
            next_s = link_s + (times.link_busy_s if link_s < slow_s else times.link_s)
            link_end = next_s + times.fast_s + times.fast_row_s * missing[last - 1].load
        light = missing[first] if first < last else held[lightest - 1]
        slow_end = (slow_s or times.slow_first_s) + times.slow_s + times.slow_row_s * light.load
        if fast_end <= slow_end and fast_end <= link_end:
            fast_s = fast_end
            if is_landed:
                place += 1
            else:
                heaviest += 1
        elif slow_end <= link_end:
            slow_s = slow_end
            slow.append(light.expert)
            if first < last:
                first += 1
            else:
                lightest -= 1
        else:
            link_s = next_s
            last -= 1
            insort(landed, (next_s, missing[last].load), key=lambda one: one[0])
    return frozenset(slow)


def _even(activated: Sequence[Activated], times: ExpertTimes, backlog_s: float) -> DispatchPlan:
    """All loads are equal: the best number of experts on the slow side, those first that would come last."""
    load = activated[0].load
    cost, slow_cost = times.fast_s + times.fast_row_s * load, times.slow_s + times.slow_row_s * load
    missing = sorted([expert for expert, _, ready_s in activated if ready_s is None])
    there = sorted([(ready_s, expert) for expert, _, ready_s in activated if ready_s is not None])
    ends = [0.0]
    end = 0.0
    for ready_s, _ in there:
        end = (ready_s if ready_s > end else end) + cost
        ends.append(end)
    num = len(missing)
    best, best_s = num, max(end, times.slow_first_s + num * slow_cost if num else 0.0)
    for count in range(num - 1, -1, -1):  # fewer there take longer on the fast side
        slow_s = times.slow_first_s + count * slow_cost if count else 0.0
        if slow_s < best_s:
            fast_s = _fetched_s(end, num - count, cost, slow_s, times, backlog_s)
            if fast_s >= best_s:
                break
            best, best_s = count, max(fast_s, slow_s)
    for count in range(num + 1, len(activated) + 1):
        slow_s = times.slow_first_s + count * slow_cost
        if slow_s >= best_s:
            break
        if ends[num - count - 1] < best_s:
            best, best_s = count, max(ends[num - count - 1], slow_s)
    stay = len(there) - max(0, best - num)
    fetch = tuple(missing[: max(0, num - best)])
    slow = (*missing[len(fetch) :], *(expert for _, expert in there[stay:]))
    name = "all-slow" if best == num else "all-fetched" if not best else "split"
    fast = _merged(there[:stay], fetch, len(slow), slow_cost, times, backlog_s)
    return DispatchPlan(fast, slow, fetch, best_s, name)


def _merged(
    there: Sequence[tuple[float, int]],
    fetch: tuple[int, ...],
    num_slow: int,
    slow_cost: float,
    times: ExpertTimes,
    backlog_s: float,
) -> tuple[int, ...]:
    """What is there and what lands, in the order in which it is ready."""
    fast = tuple([expert for _, expert in there])
    if not fetch or not there or there[-1][0] <= backlog_s:
        return fast + fetch
    slow_s = times.slow_first_s + num_slow * slow_cost if num_slow else 0.0
    ready, now = list(there), backlog_s
    for expert in fetch:
        now += times.link_busy_s if now < slow_s else times.link_s
        ready.append((now, expert))
    return tuple([expert for _, expert in sorted(ready)])


def _fetched_s(
    there_s: float, count: int, cost: float, slow_s: float, times: ExpertTimes, backlog_s: float
) -> float:
    """When the fast side is done with ``count`` transfers after what is there, which takes until ``there_s``.

    The first transfers begin while the slow side computes, the others later; the end is the latest of "one lands, and
    it and all after it are computed", which is largest for a first or a last of either.
    """
    busy = link = times.link_busy_s
    num_busy = count
    if busy != times.link_s:
        link = times.link_s
        num_busy = min(count, max(0, ceil((slow_s - backlog_s) / busy))) if busy > 0 else count
    last_busy_s = backlog_s + num_busy * busy
    ends = [there_s + count * cost, last_busy_s + (count - num_busy) * link + cost]
    if num_busy:
        ends += [backlog_s + busy + count * cost, last_busy_s + (count - num_busy + 1) * cost]
    if num_busy < count:
        ends.append(last_busy_s + link + (count - num_busy) * cost)
    return max(ends)
