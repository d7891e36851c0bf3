"""When will a program come back? A histogram of gaps per level, from all programs down to this one.

Each level shrinks to the one above it: a Dirichlet prior of so many samples' weight, so one gap of a program says a
little and thirty say nearly all. Bins are even in the logarithm, since gaps spread over five decades. From the
histogram and the time that a program has been idle follows its index, by which blocks are ranked. Programs that are
given up count too, as gaps without an end: where most never come back, none is expected for long.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate, pairwise
from operator import add, mul

from braid.policy.agents.program import COMMON_TOOL

MIN_S, MAX_S = 0.01, 86_400.0
BINS_PER_DECADE = 6
DECADES = 7
EDGES: tuple[float, ...] = (
    0.0,
    *(MIN_S * 10 ** (i / BINS_PER_DECADE) for i in range(DECADES * BINS_PER_DECADE + 1)),
)
"""Bin i is [EDGES[i], EDGES[i + 1]); gaps above the last edge count into the last bin."""
NUM_BINS = len(EDGES) - 1
HALF_WIDTHS: tuple[float, ...] = tuple((high - low) / 2 for low, high in pairwise(EDGES))
NEVER = NUM_BINS
"""The bin behind the last: programs that did not come back."""
HALF_LIFE = 256
"""Samples after which an old one weighs half: habits change."""
MAX_KEYS = 4096

Shares = Sequence[float]


def bin_of(seconds: float) -> int:
    return min(bisect_right(EDGES, seconds) - 1, NUM_BINS - 1)


def _prior() -> tuple[float, ...]:
    """What is assumed before anything was seen: any decade from 10 ms to a day is as likely, and never is as likely as
    any bin. The index that follows is about 1 / idle time, and so each program is kept for a time in proportion to what
    it costs to rebuild: the rule of who rents skis."""
    return tuple(1 / (NUM_BINS + 1) for _ in range(NUM_BINS + 1))


PRIOR = _prior()


class GapHistogram:
    """Counts of gaps, older ones fading."""

    __slots__ = ("_counts", "_scale", "_total", "num")

    def __init__(self) -> None:
        self._counts = [0.0] * (NUM_BINS + 1)
        self._total = 0.0
        self._scale = 1.0
        self.num = 0

    def add(self, seconds: float) -> None:
        self.count(bin_of(seconds))

    def count(self, place: int) -> None:
        """A gap in the bin ``place``."""
        # New samples grow instead of old ones shrinking, so that adding touches one bin.
        self._scale *= 2 ** (1 / HALF_LIFE)
        self._counts[place] += self._scale
        self._total += self._scale
        self.num += 1
        if self._scale > 1e12:
            self._counts = [count / self._scale for count in self._counts]
            self._total /= self._scale
            self._scale = 1.0

    def quantile(self, q: float) -> float:
        """Of the gaps that had an end, as seconds; 0 without any."""
        rank = q * (self._total - self._counts[NEVER])
        below = 0.0
        for place, count in enumerate(self._counts[:NEVER]):
            if count and below + count >= rank:
                return EDGES[place] + (EDGES[place + 1] - EDGES[place]) * (rank - below) / count
            below += count
        return 0.0

    @property
    def share_of_never(self) -> float:
        return self._counts[NEVER] / self._total if self._total else 0.0

    def shrunk_to(self, prior: Shares, weight: float) -> list[float]:
        """Shares of the bins: the counts, in units of the newest sample, and ``weight`` samples of the prior."""
        total = self._total + weight * self._scale
        own, above = 1 / total, weight * self._scale / total
        return [count * own + share * above for count, share in zip(self._counts, prior, strict=True)]


class GapModel:
    """Gaps of all programs, by finish kind, by tool and by program.

    Args:
        weight: of the level above, in samples.
        max_keys: tools and programs that are remembered; the least recently seen go.
    """

    def __init__(self, weight: float = 10.0, max_keys: int = MAX_KEYS) -> None:
        self._weight = weight
        self._max_keys = max_keys
        self._all = GapHistogram()
        self._levels: OrderedDict[tuple[str, Hashable], GapHistogram] = OrderedDict()

    def add(self, seconds: float, kind: str, tool: str | None, program: Hashable) -> None:
        """A program has come back after ``seconds``; its last turn had ended by ``kind`` (with a call of ``tool``)."""
        if tool != COMMON_TOOL:
            self._all.add(seconds)
        for key in _keys(kind, tool, program):
            self._level(key).add(seconds)

    def add_never(self, kind: str, tool: str | None) -> None:
        """A program whose last turn had ended so has not come back. That says nothing about its own habits."""
        if tool != COMMON_TOOL:
            self._all.count(NEVER)
        for key in _keys(kind, tool, None):
            self._level(key).count(NEVER)

    def shares(self, kind: str, tool: str | None, program: Hashable) -> list[float]:
        """Of the bins and of ``NEVER``: what to expect of a turn that has ended so."""
        shares = list(PRIOR) if tool == COMMON_TOOL else self._all.shrunk_to(PRIOR, self._weight)
        for key in _keys(kind, tool, program):
            histogram = self._levels.get(key)
            if histogram is not None:
                shares = histogram.shrunk_to(shares, self._weight)
        return shares

    def gaps(self, kind: str, tool: str | None, program: Hashable) -> Gaps:
        return Gaps(self.shares(kind, tool, program))

    def source(self, kind: str, tool: str | None, program: Hashable) -> str:
        """The finest level that weighs more than the one above it: ``program``, ``tool``, ``kind``, ``global``, or
        ``cold`` where there is none."""
        for name, key in reversed(_keys(kind, tool, program)):
            histogram = self._levels.get((name, key))
            if histogram is not None and histogram.num > self._weight:
                return name
        return "global" if self._all.num > self._weight else "cold"

    def describe(self, kinds: Iterable[str]) -> dict[str, float]:
        """Quantiles, samples and the share that never returned, of those ``kinds`` of which there are any."""
        state: dict[str, float] = {}
        for kind in kinds:
            histogram = self._levels.get(("kind", kind))
            if histogram is not None:
                name = kind.replace(" ", "_").replace("-", "_")
                state[f"gap_p50_seconds_{name}"] = histogram.quantile(0.5)
                state[f"gap_p90_seconds_{name}"] = histogram.quantile(0.9)
                state[f"gap_samples_{name}"] = histogram.num
                state[f"gap_never_share_{name}"] = histogram.share_of_never
        return state

    def _level(self, key: tuple[str, Hashable]) -> GapHistogram:
        histogram = self._levels.get(key)
        if histogram is None:
            histogram = self._levels[key] = GapHistogram()
            if len(self._levels) > self._max_keys:
                self._levels.popitem(last=False)
        self._levels.move_to_end(key)
        return histogram


def _keys(kind: str, tool: str | None, program: Hashable) -> list[tuple[str, Hashable]]:
    """Prefixes that programs share have no kind: what is seen of them says nothing of programs."""
    named: list[tuple[str, Hashable]] = [] if tool == COMMON_TOOL else [("kind", kind)]
    if tool is not None:
        named.append(("tool", tool))
    return named if program is None else [*named, ("program", program)]


class Gaps:
    """A law of gaps, and what it says of a program that has been idle for a while."""

    __slots__ = ("_held", "_index", "_later")

    def __init__(self, shares: Shares) -> None:
        later = list(accumulate(reversed(shares)))
        later.reverse()
        self._later = later
        """By edge: the chance to come back after it, or never."""
        self._held: list[float] = []
        """By edge: the mean time held until it from the first on, reckoned when somebody asks for an index."""
        self._index: list[float | None] = [None] * NUM_BINS

    def returns_within(self, seconds: float, idle_s: float) -> float:
        """The chance to be back within ``seconds`` from now, after ``idle_s`` without."""
        still = self._survival(idle_s)
        return 0.0 if still <= 0 else 1 - self._survival(idle_s + seconds) / still

    def returns(self, idle_s: float) -> float:
        """The chance to be back at all, after ``idle_s`` without."""
        still = self._survival(idle_s)
        return 0.0 if still <= 0 else max(0.0, 1 - self._later[NUM_BINS] / still)

    def median(self, idle_s: float) -> float | None:
        """Seconds from now within which it is back as likely as not; None where it is likelier that it never is."""
        goal = self._survival(idle_s) / 2
        if goal <= 0 or self._later[NUM_BINS] > goal:
            return None
        place = next(place for place in range(bin_of(idle_s), NUM_BINS) if self._later[place + 1] <= goal)
        low, high = EDGES[place], EDGES[place + 1]
        before, after = self._later[place], self._later[place + 1]
        return max(0.0, low + (before - goal) / (before - after) * (high - low) - idle_s)

    def index(self, idle_s: float) -> float:
        """Returns per second of holding, if held for the best time: the most that
        P(back within h) / E(time held, at most h) reaches over all h; per second.

        This is the Gittins index of a job that pays when it ends (Gittins 1979): holding the programs of highest index
        times saved cost per byte saves most, if each is held until it returns or is given up. It falls with idle time
        where gaps are spread widely, and rises where they are alike.
        """
        place = bin_of(idle_s)
        known = self._index[place]
        if known is None:
            known = self._index[place] = self._best(place)
        return known

    def _survival(self, seconds: float) -> float:
        place = bin_of(seconds)
        before, after = self._later[place], self._later[place + 1]
        inside = (seconds - EDGES[place]) / (2 * HALF_WIDTHS[place])
        return before + (after - before) * inside if inside < 1 else after

    def _best(self, place: int) -> float:
        """From the bin's middle, over holds to the ends of all later bins.

        Most of them need not be looked at: no longer hold can do better once all that may yet come would not make up
        for the time held so far.
        """
        later = self._later
        if not self._held:
            areas = map(mul, map(add, later, later[1:]), HALF_WIDTHS)
            self._held = list(accumulate(areas, initial=0.0))
        still = (later[place] + later[place + 1]) / 2
        before = self._held[place] + (later[place] + still) * HALF_WIDTHS[place] / 2
        all_that_comes = still - later[NUM_BINS]
        best = 0.0
        for after, held in zip(later[place + 1 :], self._held[place + 1 :], strict=True):
            held -= before
            if still - after > best * held:
                best = (still - after) / held
            elif all_that_comes <= best * held:
                break
        return best
