"""From measured steps to the tables of ``StepCost``, and both to and from plain data.

What a step costs cannot be measured part by part, so parts are told apart by differences: of decode steps of one size
the shortest context stands for everything but attention; of chunks the one without context.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from braid.policy.cost import Grid, Line, StepCost

MIXING_RANGE = (0.5, 3.0)


class DecodeSample(NamedTuple):
    """A step of ``num_seqs`` decodes at ``context`` tokens; ``head_seconds`` of it went into logits and sampling."""

    num_seqs: int
    context: int
    seconds: float
    head_seconds: float


class PrefillSample(NamedTuple):
    """A step of one chunk behind ``context`` tokens, without logits."""

    chunk: int
    context: int
    seconds: float


class MixedSample(NamedTuple):
    """A step of ``num_seqs`` decodes at ``context`` and one chunk behind ``chunk_context`` tokens."""

    num_seqs: int
    context: int
    chunk: int
    chunk_context: int
    seconds: float


def fit_cost(
    profile: str,
    decodes: Iterable[DecodeSample],
    prefills: Iterable[PrefillSample],
    mixed: Iterable[MixedSample] = (),
) -> StepCost:
    """Tables of the medians of repeated samples.

    Decodes must cover at least two numbers of sequences and two contexts, each number at the shortest one; prefills at
    least two chunks and two contexts, every pair. Pairs of many sequences and long contexts, which no store may hold,
    can be absent: attention is proportional to the context there.

    Raises:
        ValueError: too few samples, or a pair is missing.
    """
    kept = list(decodes)
    by_decode = _medians((s.num_seqs, s.context, s.seconds - s.head_seconds) for s in kept)
    head = _medians((s.num_seqs, 0, s.head_seconds) for s in kept)
    by_prefill = _medians((s.chunk, s.context, s.seconds) for s in prefills)
    seqs, contexts = _axes(by_decode, "decodes")
    chunks, behind = _axes(by_prefill, "prefills")
    base = {n: _need(by_decode, (n, contexts[0]), "decodes") for n in seqs}
    alone = {n: _need(by_prefill, (n, behind[0]), "prefills") for n in chunks}
    small = Line(tuple(map(float, seqs)), tuple(base[n] for n in seqs))
    eager = max(0.0, alone[chunks[0]] - small.at(chunks[0]).seconds)
    # More tokens never take less time: what says so is noise.
    dense = base | {n: max(base[seqs[-1]], alone[n] - eager) for n in chunks if n > seqs[-1]}
    knots = sorted(dense)
    cost = StepCost(
        profile=profile,
        dense=Line(tuple(map(float, knots)), tuple(dense[n] for n in knots)),
        head=Line(tuple(map(float, seqs)), tuple(head[n, 0] for n in seqs)),
        prefill=Grid(
            tuple(map(float, chunks)),
            tuple(map(float, behind)),
            tuple(
                tuple(max(0.0, _need(by_prefill, (n, c), "prefills") - alone[n]) for c in behind)
                for n in chunks
            ),
        ),
        decode=Grid(
            tuple(map(float, seqs)),
            tuple(map(float, contexts)),
            tuple(tuple(_attention(by_decode, base, n, contexts)) for n in seqs),
        ),
        eager=eager,
    )
    return _with_mixing(cost, mixed)


def _medians(values: Iterable[tuple[int, int, float]]) -> dict[tuple[int, int], float]:
    found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for first, second, seconds in values:
        found[first, second].append(seconds)
    return {place: median(seconds) for place, seconds in found.items()}


def _axes(table: Mapping[tuple[int, int], float], what: str) -> tuple[list[int], list[int]]:
    rows, columns = sorted({row for row, _ in table}), sorted({column for _, column in table})
    if len(rows) < 2 or len(columns) < 2:
        raise ValueError(f"{what} need at least two sizes and two contexts, got {rows} and {columns}")
    return rows, columns


def _need(table: Mapping[tuple[int, int], float], place: tuple[int, int], what: str) -> float:
    if place not in table:
        raise ValueError(f"{what} lack size {place[0]} at context {place[1]}")
    return table[place]


def _attention(
    table: Mapping[tuple[int, int], float], base: Mapping[int, float], num_seqs: int, contexts: Sequence[int]
) -> Iterable[float]:
    """Seconds of attention of one number of sequences over all contexts, the shortest one's taken as none."""
    last_context, last = contexts[0], 0.0
    for context in contexts:
        if (num_seqs, context) in table:
            last_context, last = context, max(0.0, table[num_seqs, context] - base[num_seqs])
            yield last
        else:
            yield last * context / last_context


def _with_mixing(cost: StepCost, mixed: Iterable[MixedSample]) -> StepCost:
    factors = []
    for sample in mixed:
        rest = cost.eager + cost.dense.at(sample.chunk + sample.num_seqs).seconds
        rest += cost.head.at(sample.num_seqs).seconds
        attention = cost.prefill.at(sample.chunk, sample.chunk_context).seconds
        attention += cost.decode.at(sample.num_seqs, sample.context).seconds
        if attention > 0:
            factors.append((sample.seconds - rest) / attention)
    if not factors:
        return cost
    low, high = MIXING_RANGE
    return StepCost(**{**_parts(cost), "mixing": min(high, max(low, median(factors)))})


def _parts(cost: StepCost) -> dict[str, Any]:
    names = ("profile", "dense", "head", "prefill", "decode", "mixing", "host", "eager")
    return {name: getattr(cost, name) for name in names}


def cost_to_data(cost: StepCost) -> dict[str, Any]:
    """Plain data for JSON."""
    return asdict(cost)


def cost_from_data(data: Mapping[str, Any]) -> StepCost:
    """What ``cost_to_data`` gave.

    Raises:
        ValueError: it is not that.
    """
    try:
        return StepCost(
            profile=str(data["profile"]),
            dense=_line(data["dense"]),
            head=_line(data["head"]),
            prefill=_grid(data["prefill"]),
            decode=_grid(data["decode"]),
            mixing=float(data["mixing"]),
            host=float(data["host"]),
            eager=float(data["eager"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"is no table of step times: {type(error).__name__} {error}") from None


def _line(data: Mapping[str, Any]) -> Line:
    return Line(tuple(map(float, data["knots"])), tuple(map(float, data["seconds"])))


def _grid(data: Mapping[str, Any]) -> Grid:
    seconds = tuple(tuple(map(float, row)) for row in data["seconds"])
    return Grid(tuple(map(float, data["rows"])), tuple(map(float, data["columns"])), seconds)
