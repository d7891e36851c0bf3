"""Several policies on the same programs, for several seeds: numbers, their means and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any, TypeAlias

from braid.core.metrics import percentile
from braid.sim.agents import AgentRun, AgentSetup, run_agents
from braid.sim.programs import Family

Numbers: TypeAlias = Mapping[str, "float | Numbers"]

# fmt: off
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond them the last one, which is a little too wide."""


def numbers_of(run: AgentRun) -> dict[str, Any]:
    """One run in numbers: seconds, tokens, counts."""
    compulsory = run.tokens["compulsory"]
    prompts = sum(run.tokens.values())
    return {
        "jct_s": _spread(run.jct_s, 50, 95, 99),
        "ttft_first_s": _spread(run.ttft_first_s, 50, 99),
        "ttft_later_s": _spread(run.ttft_later_s, 50, 99),
        "tokens": dict(run.tokens),
        "recompute_per_compulsory": run.tokens["recompute"] / compulsory if compulsory else 0.0,
        "hit_rate": run.tokens["device_hit"] / prompts if prompts else 0.0,
        "preemptions": run.num_preemptions,
        "refused": run.num_refused,
        "makespan_s": run.seconds,
        "steps": run.num_steps,
        "steps_extrapolated": run.num_extrapolated,
        "kept": dict(run.kept),
        "tiers": {name: dict(counts) for name, counts in run.tiers.items()},
    }


def _spread(values: Sequence[float], *percents: int) -> dict[str, float]:
    """Mean, percentiles and maximum; zeros where there are no values."""
    if not values:
        values = (0.0,)
    found = {f"p{percent}": percentile(values, percent) for percent in percents}
    return {"mean": fmean(values)} | found | {"max": max(values)}


def summary_of(runs: Sequence[AgentRun]) -> dict[str, Any]:
    """The means of all seeds' numbers; ``intervals`` of 95 % and every seed's numbers where there are several."""
    each = [numbers_of(run) for run in runs]
    means = combined(each, fmean)
    if len(runs) == 1:
        return means
    by_seed = [{"seed": run.seed, **numbers} for run, numbers in zip(runs, each, strict=True)]
    return means | {"intervals": combined(each, interval), "seeds": by_seed}


def combined(each: Sequence[Numbers], combine: Callable[[Sequence[float]], Any]) -> dict[str, Any]:
    """Number by number; one that a run lacks is 0 there."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(name for numbers in each for name in numbers):
        values = [numbers.get(name, 0.0) for numbers in each]
        inner = [value for value in values if isinstance(value, Mapping)]
        made[name] = combined(inner, combine) if inner else combine(_plain(values))
    return made


def _plain(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % for the mean, by Student's t."""
    degrees = len(values) - 1
    half = _T[min(degrees, len(_T)) - 1] * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def ratio_of(runs: Sequence[AgentRun], base: Sequence[AgentRun]) -> dict[str, Any]:
    """How many times longer ``base`` takes, in mean JCT, seed by seed: above 1 is better."""
    ratios = [fmean(b.jct_s) / fmean(r.jct_s) for r, b in zip(runs, base, strict=True)]
    made: dict[str, Any] = {"policy": base[0].policy, "jct_ratio": fmean(ratios)}
    return made | ({"interval": interval(ratios)} if len(ratios) > 1 else {})


Done = Callable[[AgentRun], None]


def run_all(
    families: Sequence[Family],
    setup: AgentSetup,
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    done: Done = lambda run: None,
) -> dict[str, list[AgentRun]]:
    """Every policy with every seed, in ``jobs`` processes; ``done`` hears of each run when it has ended. Seeds choose
    programs and starts, so policies are compared on the same ones.
    """
    tasks = [(policy, seed) for seed in seeds for policy in policies]
    found: dict[tuple[str, int], AgentRun] = {}
    for run in _runs(families, setup, tasks, jobs):
        done(run)
        found[run.policy, run.seed] = run
    return {policy: [found[policy, seed] for seed in seeds] for policy in policies}


def _runs(
    families: Sequence[Family], setup: AgentSetup, tasks: Sequence[tuple[str, int]], jobs: int
) -> Iterator[AgentRun]:
    if jobs == 1:
        for policy, seed in tasks:
            yield run_agents(families, setup, policy, seed)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Not by fork: the caller may have threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(run_agents, families, setup, policy, seed) for policy, seed in tasks]
        for future in as_completed(waiting):
            yield future.result()
