"""From a trace to the families of programs that a simulation plays.

The plan of a replay says who waits for whom and what prompts share; here its rows become families with streams
numbered from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from braid.lab.progress import Progress
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.table import Trace, TraceError
from braid.policy.agents.program import Finish
from braid.sim.programs import Family, Text, Turn

SOME_TOOL = "tool"
"""The name of tools whose names a trace does not say: one for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyOptions:
    """What is taken of a trace.

    Args:
        ctx_scale: multiplies all lengths, of prompts and answers.
        max_turns: of each program, the first ones; None for all.
        max_gap_s: cap on recorded gaps.
        max_model_len: tokens of a request, prompt and answer; turns beyond it are left out.
    """

    ctx_scale: float = 1.0
    max_turns: int | None = None
    max_gap_s: float | None = None
    max_model_len: int | None = None


class Families(NamedTuple):
    """``notes``: what differs from the trace, one sentence each."""

    families: tuple[Family, ...]
    notes: tuple[str, ...]


def families_of(trace: Trace, options: FamilyOptions, progress: Progress | None = None) -> Families:
    """All programs of a trace that can be played, each with its sub-agents.

    Raises:
        TraceError: the trace names no programs, or its prompts have no lengths.
    """
    if options.max_turns is not None and options.max_turns < 1:
        raise TraceError(f"max_turns must be at least 1, got {options.max_turns}")
    wanted = pl.col("program_id").is_not_null()
    if options.max_turns is not None:
        wanted &= pl.col("turn") < options.max_turns
    frame = trace.frame.filter(wanted)
    if not frame.height:
        raise TraceError(f"{trace.info.source}: names no programs; choose a trace of conversations or agents")
    if frame["in_tok"].null_count() == frame.height:
        raise TraceError(
            f"{trace.info.source}: prompts have no lengths; take them from another trace (--lengths)"
        )
    cut = Trace(frame, trace.info, trace.findings)
    plan = build_plan(
        cut,
        PlanOptions(
            arrivals="rate",
            rate=1.0,
            max_gap_s=options.max_gap_s,
            length_factor=options.ctx_scale,
            max_tokens=options.max_model_len,
        ),
        progress,
    )
    return Families(
        tuple(_families(plan, frame)), (*_notes(plan, cut), *_tool_notes(frame), *_shared_notes(cut))
    )


def _notes(plan: ReplayPlan, trace: Trace) -> Iterator[str]:
    yield from trace.info.notes
    # The first one is about starts, which the simulation draws itself.
    yield from (note for note in plan.notes if not note.startswith("Programs start at"))


def _tool_notes(frame: pl.DataFrame) -> Iterator[str]:
    calls = frame.filter(pl.col("finish") == "tool")
    nameless = calls["tool"].null_count()
    if nameless:
        yield f"{nameless:,} of {calls.height:,} tool calls have no name: one name stands for all of them."


def _shared_notes(trace: Trace) -> Iterator[str]:
    if trace.info.hash_scope == "global" and trace.frame["block_ids"].null_count() < trace.frame.height:
        yield "Blocks that programs share with each other count as different ones."


def _families(plan: ReplayPlan, frame: pl.DataFrame) -> Iterator[Family]:
    endings = frame.select("finish", "tool", "parent_id").with_row_index("source_row")
    rows = plan.frame.join(endings, on="source_row", how="left", maintain_order="left")
    rows = rows.join(_replies(plan.frame), on="request", how="left", maintain_order="left")
    for part in rows.partition_by("group", maintain_order=True):
        yield _family(part.rows(named=True))


def _replies(frame: pl.DataFrame) -> pl.DataFrame:
    """Of the requests whose answers stand in the next prompt: its segments, and how far it holds the answer."""
    earlier = [
        pl.col(name).shift(1).over("program").alias(f"{name}_before") for name in ("request", "in_tok")
    ]
    turns = frame.sort("program", "turn", maintain_order=True).with_columns(*earlier)
    told = turns.filter((pl.col("shared_tok") > pl.col("in_tok_before")).fill_null(False))
    return told.select(
        pl.col("request_before").alias("request"),
        pl.col("segment_keys").alias("next_keys"),
        pl.col("segment_toks").alias("next_toks"),
        pl.col("shared_tok").alias("next_shared"),
    )


def _family(rows: Sequence[Mapping[str, Any]]) -> Family:
    place = {row["request"]: number for number, row in enumerate(rows)}
    members: dict[str, int] = {}
    streams: dict[int, int] = {}
    turns = []
    for row in rows:
        members.setdefault(row["program"], len(members))
        turns.append(_turn(row, place, members, streams))
    above = {row["program"]: row["parent_id"] for row in rows}
    parents = [members.get(above[name], -1) for name in members]
    # Whoever came first in a family is its root, though its parent may have been left out.
    parents = [parent if parent < number else -1 for number, parent in enumerate(parents)]
    return Family(
        name=rows[0]["program"],
        turns=tuple(turns),
        parents=tuple(parents),
        num_streams=len(streams) + len(turns),
    )


def _turn(
    row: Mapping[str, Any], place: Mapping[int, int], members: Mapping[str, int], streams: dict[int, int]
) -> Turn:
    return Turn(
        member=members[row["program"]],
        after=tuple(place[request] for request in row["after"]),
        delay_s=row["delay_s"],
        prompt=_text(row["segment_keys"], row["segment_toks"], streams),
        num_output=row["out_tok"],
        reply=_reply(row, streams),
        finish=Finish(row["finish"]) if row["finish"] else Finish.UNKNOWN,
        tool=(row["tool"] or SOME_TOOL) if row["finish"] == "tool" else None,
    )


def _text(keys: Sequence[int], toks: Sequence[int], streams: dict[int, int]) -> Text:
    return Text(tuple(streams.setdefault(key, len(streams)) for key in keys), tuple(toks))


def _reply(row: Mapping[str, Any], streams: dict[int, int]) -> Text:
    """What the next prompt holds of it, or a stream that nobody else has."""
    if row["next_keys"] is None:
        return Text((streams.setdefault(-1 - row["request"], len(streams)),), (row["out_tok"],))
    whole = _text(row["next_keys"], row["next_toks"], streams)
    return part_of(whole, row["in_tok"], row["next_shared"])


def part_of(text: Text, start: int, stop: int) -> Text:
    """Tokens ``[start, stop)`` of a text."""
    kept: list[tuple[int, int]] = []
    end = 0
    for stream, tokens in zip(text.streams, text.tokens, strict=True):
        begin, end = end, end + tokens
        count = min(end, stop) - max(begin, start)
        if count > 0:
            kept.append((stream, count))
    return Text(tuple(stream for stream, _ in kept), tuple(count for _, count in kept))
