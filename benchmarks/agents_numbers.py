"""Numbers of ``agents.py``: what a run was, how policies compare, and whether the simulator ranks them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

from agents_client import Played
from agents_programs import Program
from agents_twin import Lengths, Told

from braid.sched.observer import Origins
from braid.sim.agents import AgentRun
from braid.sim.compare import combined, interval, numbers_of

BASE = "lru"
ORIGINS = "braid_prompt_tokens_by_origin_total"
KEPT = "braid_programs_kept_total"


def run_of(played: Played, policy: str, number: int) -> AgentRun:
    """A run on the real server, in the words of a simulated one; ``number`` is its round.

    Raises:
        RuntimeError: the server counted something else than its clients were told.
    """
    check_counters(played)
    sent: dict[int, float] = {}
    ended: dict[int, float] = {}
    for turn in played.turns:
        sent[turn.program] = min(turn.sent_s, sent.get(turn.program, turn.sent_s))
        ended[turn.program] = max(turn.end_s, ended.get(turn.program, turn.end_s))
    return AgentRun(
        policy=policy,
        seed=number,
        jct_s=tuple(ended[program] - sent[program] for program in sorted(sent)),
        ttft_first_s=tuple(turn.ttft for turn in played.turns if not turn.turn),
        ttft_later_s=tuple(turn.ttft for turn in played.turns if turn.turn),
        tokens={name: int(played.counters.get(f"{ORIGINS}{{source={name}}}", 0)) for name in Origins._fields},
        kept=_labelled(played.counters, KEPT),
        tiers={},
        num_preemptions=int(played.counters.get("braid_preemptions_total", 0)),
        num_refused=0,
        num_steps=int(played.counters["braid_steps_total"]),
        num_extrapolated=0,
        seconds=max(ended.values()) - min(sent.values()),
    )


def _labelled(counters: Mapping[str, float], name: str) -> dict[str, int]:
    """A counter's values by its only label's."""
    found = {key: value for key, value in counters.items() if key.startswith(f"{name}{{")}
    return {key.partition("=")[2].rstrip("}"): int(value) for key, value in found.items()}


def check_counters(played: Played) -> None:
    """What the clients were told, and what the server has counted.

    Raises:
        RuntimeError: naming what differs.
    """
    told = {
        "braid_prompt_tokens_total": sum(turn.prompt for turn in played.turns),
        "braid_prompt_tokens_cached_total": sum(turn.cached for turn in played.turns),
        "braid_generation_tokens_total": sum(turn.out for turn in played.turns),
        f"{ORIGINS}{{source=device_hit}}": sum(turn.cached for turn in played.turns),
    }
    finished = sum(_labelled(played.counters, "braid_requests_finished_total").values())
    if finished != len(played.turns):
        raise RuntimeError(
            f"clients had {len(played.turns)} answers, but the server finished {finished} requests"
        )
    for name, wanted in told.items():
        found = played.counters.get(name, 0)
        if found != wanted:
            raise RuntimeError(f"clients were told of {wanted}, but {name} rose by {found:.0f}")


def told_of(played: Played) -> dict[tuple[int, int], Lengths]:
    """Every turn's lengths, as the server counted them."""
    return {(turn.program, turn.turn): Lengths(turn.prompt, turn.out) for turn in played.turns}


def pressure(programs: Sequence[Program], told: Told, kv_tokens: int) -> float:
    """What all programs hold at their ends, over what the KV store holds."""
    ends = [sum(told[number, len(program.steps) - 1]) for number, program in enumerate(programs)]
    return sum(ends) / kv_tokens


def summary(runs: Sequence[AgentRun], base: Sequence[AgentRun]) -> dict[str, Any]:
    """Medians of the rounds, every round's numbers, and the ratios of ``base`` to them: above 1 is better."""
    each = [numbers_of(run) for run in runs]
    return {
        **combined(each, median),
        "versus": {"policy": base[0].policy, **versus(runs, base)},
        "rounds": [{"round": run.seed, **numbers} for run, numbers in zip(runs, each, strict=True)],
    }


def versus(runs: Sequence[AgentRun], base: Sequence[AgentRun]) -> dict[str, Any]:
    """Round by round; the mean ratio and its interval of 95 %, where there are several rounds."""
    found: dict[str, Any] = {}
    for name in ("jct", "ttft", "ttft_first", "ttft_later"):
        ratios = [_mean(b, name) / _mean(r, name) for r, b in zip(runs, base, strict=True)]
        found[f"{name}_ratio"] = fmean(ratios)
        if len(ratios) > 1:
            found[f"{name}_interval"] = interval(ratios)
    return found


def _mean(run: AgentRun, name: str) -> float:
    if name == "ttft":
        return fmean((*run.ttft_first_s, *run.ttft_later_s))
    values: Sequence[float] = getattr(run, f"{name}_s")
    return fmean(values)


def agreement(real: Mapping[str, float], simulated: Mapping[str, float]) -> dict[str, Any]:
    """Both orders of the policies by mean JCT, the best first; Kendall's tau; pairs that are ordered otherwise.

    Args:
        real, simulated: mean JCT by policy, of the same policies.
    """
    pairs = list(combinations(real, 2))
    swapped = [
        {
            "pair": pair,
            "real": real[pair[0]] / real[pair[1]],
            "simulated": simulated[pair[0]] / simulated[pair[1]],
        }
        for pair in pairs
        if (real[pair[0]] - real[pair[1]]) * (simulated[pair[0]] - simulated[pair[1]]) < 0
    ]
    return {
        "real": sorted(real, key=real.__getitem__),
        "simulated": sorted(simulated, key=simulated.__getitem__),
        "tau": 1 - 2 * len(swapped) / len(pairs) if pairs else 1.0,
        "swapped": swapped,
        "jct_error": {name: simulated[name] / real[name] - 1 for name in real},
        "jct_error_mean": fmean(abs(simulated[name] / real[name] - 1) for name in real),
    }
