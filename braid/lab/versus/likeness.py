"""May two runs be compared? What they share, in what they differ, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from braid.lab.measures.measure import measure
from braid.lab.replay.record import Run
from braid.lab.table import TraceError
from braid.lab.versus.bootstrap import MIN_BLOCKS, Cut

HEAD = ("url", "model", "endpoint", "server", "history", "output_enforced")
OF_THE_CLIENT = {
    "num_senders",
    "content_seed",
    "slots",
    "continuous_usage",
    "reports_cached",
    "max_tokens",
    "max_connections",
}
"""Conditions of a run that change no answer."""
ONE_SIDED = 0.01
Pairs = Sequence[tuple[Run, Run]]


def check(pairs: Pairs, unpaired: bool) -> None:
    """Refuse what cannot be compared.

    Raises:
        TraceError: no pairs, a run without requests, or runs of different plans and not ``unpaired``.
    """
    if not pairs:
        raise TraceError("a comparison needs two runs, A and B")
    for run in (run for found in pairs for run in found):
        if not run.frame.height:
            raise TraceError(f"run {run.head.label!r} has no requests")
    for a, b in pairs:
        if unpaired or _same_plan(a, b):
            continue
        raise TraceError(
            f"runs {a.head.label!r} and {b.head.label!r} are of different plans, so their requests cannot be paired: "
            f"{'; '.join(plan_differences(a, b))}. Replay the same trace with the same options and seed, or compare "
            "distributions with --unpaired"
        )


def _same_plan(a: Run, b: Run) -> bool:
    return a.head.plan_sha256 == b.head.plan_sha256 and a.frame.height == b.frame.height


def plan_differences(a: Run, b: Run) -> list[str]:
    """In what two plans differ, one phrase each."""
    found = []
    if a.head.data_sha256 != b.head.data_sha256 or a.head.source != b.head.source:
        found.append(f"trace {a.head.source} and {b.head.source}")
    found += list(_changed(a.head.plan, b.head.plan))
    if a.frame.height != b.frame.height:
        found.append(f"{a.frame.height:,} and {b.frame.height:,} requests")
    return found or [
        f"plan {a.head.plan_sha256[:12]} and {b.head.plan_sha256[:12]}, made with the same options"
    ]


def differences(pairs: Pairs) -> tuple[str, ...]:
    """In what the runs of a pair differ, beside what came of them; each once."""
    found: dict[str, None] = {}
    for a, b in pairs:
        heads = [{name: getattr(run.head, name) for name in HEAD} for run in (a, b)]
        conditions = [
            {name: value for name, value in run.head.run.items() if name not in OF_THE_CLIENT}
            for run in (a, b)
        ]
        found |= dict.fromkeys((*_changed(*heads), *_changed(*conditions)))
    return tuple(found)


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield f"{name} {_word(a.get(name))} and {_word(b.get(name))}"


def _word(value: Any) -> str:
    return "none" if value is None or value == "" else str(value)


def invalid(pairs: Pairs) -> tuple[str, ...]:
    """One sentence for each reason that a run is invalid."""
    found = []
    for number, runs in enumerate(pairs, 1):
        for letter, run in zip("AB", runs, strict=True):
            name = letter if len(pairs) == 1 else f"{letter}{number}"
            found += [f"{name}: {reason}" for reason in measure(run).verdict.reasons]
    return tuple(found)


def notes_of(pairs: Pairs, cuts: Sequence[Cut], one_sided: Sequence[int], unpaired: bool) -> tuple[str, ...]:
    """What a reader must know, one sentence each."""
    return tuple(
        dict.fromkeys(
            (*_of_runs(pairs), *_of_blocks(cuts, len(pairs)), *_of_pairing(pairs, one_sided, unpaired))
        )
    )


def _of_runs(pairs: Pairs) -> Iterator[str]:
    for letter, runs in zip("AB", zip(*pairs, strict=True), strict=True):
        for run in runs:
            if run.head.stopped:
                why = run.head.stopped.rstrip(".")
                yield f"{letter} ended before its plan did: {why}. What it left unsent is counted in neither."
            if not run.head.output_enforced:
                yield f"{letter}: the server chose the lengths of its answers; they were not enforced."
    for a, b in pairs:
        if a.head.history != b.head.history:
            yield "Later turns hold recorded answers in one run and live ones in the other: their prompts differ."
        if a.head.started_at == b.head.started_at and a.head.url == b.head.url and a.frame.equals(b.frame):
            yield "A and B are the same run."


def _of_blocks(cuts: Sequence[Cut], num_pairs: int) -> Iterator[str]:
    programs = sum(found.programs for found in cuts)
    if programs < MIN_BLOCKS:
        yield f"Intervals need {MIN_BLOCKS} programs, and {programs} were measured: nothing is said of chance."
    elif any(found.outlasts for found in cuts):
        yield (
            "Latencies stay correlated for longer than a block: bursts are too few in this run to average over, and "
            "intervals are too narrow. Replay a longer stretch."
        )
    if num_pairs == 1:
        yield (
            "One pair of runs: intervals hold the chance of its requests, not what changes from run to run. Repeat the "
            "pair for that."
        )


def _of_pairing(pairs: Pairs, one_sided: Sequence[int], unpaired: bool) -> Iterator[str]:
    if unpaired:
        differ = [text for a, b in pairs if not _same_plan(a, b) for text in plan_differences(a, b)]
        yield (
            "Not paired: what differs between the plans is part of every difference"
            + (f" ({'; '.join(dict.fromkeys(differ))})." if differ else ".")
        )
    total = sum(a.frame.height for a, _ in pairs)
    if sum(one_sided) > ONE_SIDED * total:
        yield f"{sum(one_sided):,} of {total:,} requests fell into the window of only one run and are in neither."
