"""Means, intervals, ratios by seed and goals, of the runs of ``agents_simulated.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from braid.sim.compare import combined, interval

BASES = ("lru", "continuum", "braid")
"""What others are compared with, where a study has it."""
FIGURES: Mapping[str, tuple[str, ...]] = {
    "jct_mean": ("jct_s", "mean"),
    "jct_p95": ("jct_s", "p95"),
    "first_mean": ("ttft_first_s", "mean"),
    "first_max": ("ttft_first_s", "max"),
    "later_mean": ("ttft_later_s", "mean"),
    "later_p99": ("ttft_later_s", "p99"),
    "later_max": ("ttft_later_s", "max"),
    "recompute": ("recompute_per_compulsory",),
}
"""What is also told by seed, with intervals and ratios."""
HINTED = "braid, "

Numbers = Mapping[str, Any]


class Goal(NamedTuple):
    study: str
    goal: str
    value: float
    interval: Sequence[float]
    met: bool


def summary_of(runs: Mapping[str, Mapping[int, Numbers]]) -> dict[str, Any]:
    """Of one study: ``runs`` are numbers by variant and seed."""
    runs = {name: dict(sorted(by_seed.items())) for name, by_seed in runs.items() if by_seed}
    bases = [base for base in BASES if base in runs]
    return {
        "policies": {
            name: _of_variant(by_seed) | {"times": {base: _times(by_seed, runs[base]) for base in bases}}
            for name, by_seed in runs.items()
        },
        "same_work": _same_work(list(runs.values())),
    }


def _of_variant(by_seed: Mapping[int, Numbers]) -> dict[str, Any]:
    columns = {name: [_at(numbers, path) for numbers in by_seed.values()] for name, path in FIGURES.items()}
    return {
        "mean": combined(list(by_seed.values()), fmean),
        "intervals": {name: _spread(values) for name, values in columns.items()},
        "seeds": {"seed": list(by_seed), **columns},
    }


def _times(by_seed: Mapping[int, Numbers], base: Mapping[int, Numbers]) -> dict[str, Any]:
    """How many times the base's value it is, by seed: the mean and its interval. Below 1 is better. ``gain`` is the
    inverse for the mean JCT, so that above 1 is better."""
    both = [seed for seed in by_seed if seed in base]
    made: dict[str, Any] = {}
    for name, path in FIGURES.items():
        pairs = [(_at(by_seed[seed], path), _at(base[seed], path)) for seed in both]
        made[name] = _ratio([(mine, theirs) for mine, theirs in pairs if theirs])
        if name == "jct_mean":
            made["gain"] = _ratio([(theirs, mine) for mine, theirs in pairs if mine])
    return made


def _ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """None where the base is 0 throughout."""
    ratios = [above / below for above, below in pairs]
    return {"value": fmean(ratios), "interval": _spread(ratios)} if ratios else None


def _spread(values: Sequence[float]) -> Sequence[float]:
    """95 % for the mean; of one value only itself."""
    return interval(values) if len(values) > 1 else (values[0], values[0])


def _same_work(runs: Sequence[Mapping[int, Numbers]]) -> bool:
    """Whether all variants played the same programs and turns, seed by seed, to their ends."""
    work = [
        {seed: (numbers["programs"], numbers["turns"], numbers["refused"]) for seed, numbers in each.items()}
        for each in runs
    ]
    return all(each == work[0] for each in work)


def _at(numbers: Numbers, path: Sequence[str]) -> float:
    value: Any = numbers
    for name in path:
        value = value[name]
    return float(value)


def goals_of(studies: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was wished for, beside what came out."""
    found = [goal for name, study in studies.items() for goal in _goals(name, study["policies"])]
    return [goal._asdict() for goal in found]


def _goals(study: str, policies: Mapping[str, Any]) -> Iterator[Goal]:
    if "braid" not in policies or "lru" not in policies:
        return

    def goal(words: str, policy: str, base: str, figure: str, ok: Callable[[float], bool]) -> Iterator[Goal]:
        times = policies[policy]["times"].get(base)
        if times is not None and times[figure] is not None:
            value = times[figure]["value"]
            yield Goal(study, words, value, times[figure]["interval"], ok(value))

    if study in ("weka", "lmcache", "weka-host", "lmcache-host"):
        yield from goal("mean JCT of lru / braid >= 2", "braid", "lru", "gain", lambda value: value >= 2)
        yield from goal(
            "mean JCT of continuum / braid >= 1", "braid", "continuum", "gain", lambda value: value >= 1
        )
        yield from goal(
            "max first TTFT of braid / lru <= 2", "braid", "lru", "first_max", lambda value: value <= 2
        )
    if study.endswith("-host"):
        value, spread = (policies["braid"][key] for key in ("mean", "intervals"))
        again = value["recompute_per_compulsory"]
        yield Goal(study, "recompute / compulsory of braid <= 1.2", again, spread["recompute"], again <= 1.2)
    if study.startswith("light"):
        for figure in ("jct_mean", "first_mean", "later_mean"):
            words = f"{figure.replace('_', ' ')} of braid / lru <= 1.02"
            yield from goal(words, "braid", "lru", figure, lambda value: value <= 1.02)
    if study.startswith("swe-bench"):
        words = "mean JCT of lru / continuum in 1.12 .. 3.66"
        if "continuum" in policies:
            yield from goal(words, "continuum", "lru", "gain", lambda value: 1.12 <= value <= 3.66)
    for name in policies:
        if name.startswith(HINTED) and study.startswith("hints"):
            words = f"mean JCT of '{name}' / braid <= 1.05"
            yield from goal(words, name, "braid", "jct_mean", lambda value: value <= 1.05)
