"""TraceLab (uw-syfi/TraceLab): rounds of Claude Code and Codex sessions with their tools, and the CSV made of them.

Keys of a round, by the project's documentation: ``provider``, ``session_id``, ``round_index``, ``round_id``, ``model``,
``input_tokens_total`` (``prefix_tokens`` that the provider's cache held and ``newly_append_tokens``),
``output_tokens``, ``reasoning_output_tokens``, ``current_user_message_count``, ``current_tool_result_count``,
``timing_events`` (in order: ``user_message`` and ``tool_result`` before, ``reasoning``, ``text`` and ``tool_call``
after the call of the model) and ``tools`` (``tool_name``, ``tool_wall_latency_ms``, ``tool_internal_latency_ms``).
Columns of the CSV: ``id``, ``round_idx``, ``input_len`` (new tokens), ``prefix_len``, ``output_len``, ``arrival_time``
(ms, made up by the exporter), ``tool_wait_after_ms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.csvfile import ROW, read_csv
from braid.lab.readers.draft import Draft
from braid.lab.readers.endings import tool_key
from braid.lab.readers.jsonlines import column, read_lines
from braid.lab.readers.numbers import Count, with_rows
from braid.lab.readers.source import Head, Source
from braid.lab.table import FINISHES, INPUT_KINDS, Finding, TraceInfo

LICENCE = "CC-BY-4.0"
CITATION = "SyFI TraceLab, uw-syfi/TraceLab, GitHub"
COLUMNS = {
    "id": pl.String,
    "round_idx": pl.Int64,
    "input_len": pl.Int64,
    "prefix_len": pl.Int64,
    "output_len": pl.Int64,
    "tool_wait_after_ms": pl.Float64,
    "arrival_time": pl.Float64,
}
REQUIRED = ("id", "round_idx", "input_len", "prefix_len", "output_len", "tool_wait_after_ms")
_BEFORE, _TEXT, _ANSWERS = ("user_message", "tool_result"), "text", ("reasoning", "text", "tool_call")


class _Event(msgspec.Struct):
    event_type: str
    timestamp: datetime | None = None


class _Tool(msgspec.Struct):
    tool_name: str | None = None
    tool_wall_latency_ms: float | None = None
    tool_internal_latency_ms: float | None = None

    @property
    def took_s(self) -> float:
        """As the tool's runner measured it, else as the log shows it; 0 where neither is known."""
        known = self.tool_internal_latency_ms
        return max(0.0, (self.tool_wall_latency_ms or 0.0) if known is None else known) / 1e3


class _Line(msgspec.Struct):
    session_id: str
    round_index: Count
    input_tokens_total: Count
    output_tokens: Count
    timing_events: list[_Event]
    tools: list[_Tool]
    provider: str | None = None
    model: str | None = None
    round_id: str | None = None
    prefix_tokens: Count | None = None
    reasoning_output_tokens: Count | None = None
    current_user_message_count: Count | None = None
    current_tool_result_count: Count | None = None


class _Round(NamedTuple):
    """What is kept of a line."""

    session_id: str
    round_index: int
    round_id: str | None
    provider: str | None
    model: str | None
    in_tok: int
    out_tok: int
    found_tok: int | None
    reasoning_tok: int | None
    began: float | None
    ended: float | None
    input_kind: str | None
    finish: str | None
    tool: str | None
    tool_s: float | None


def sees(head: Head) -> bool:
    return {"session_id", "round_index", "input_tokens_total", "tools", "timing_events"} <= set(head.first)


def sees_csv(head: Head) -> bool:
    return set(REQUIRED) <= set(head.columns)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """A program is a session, a turn a round. A round begins with the last input before the model's first output and
    ends with the last output; the gap before it counts from the end of the round before."""
    rounds, numbers, problems = read_lines(source, _Line, progress, _round)
    times = [entry.began for entry in rounds if entry.began is not None]
    first = min(times, default=0.0)
    frame = with_rows(_frame(rounds, first), numbers, problems)
    frame, findings = _once(frame)
    notes = (
        f"t_s = 0 is {first:.3f} s since 1970 UTC." if times else "No arrival times.",
        "Times are those of the agents' logs: e2e_s ends with the last output that was logged.",
        "found_tok is what the provider's own cache held; out_tok counts hidden reasoning too (reasoning_tok).",
        "tool_s: the longest of the round's tools. A session is one program: which sub-agents it started is not said.",
    )
    return Draft(_with_turns(frame), _info(source, notes), problems, findings)


def _round(line: _Line) -> _Round:
    began, ended = _stretch(line.timing_events)
    says = any(event.event_type == _TEXT for event in line.timing_events)
    return _Round(
        line.session_id,
        line.round_index,
        line.round_id,
        line.provider,
        line.model,
        line.input_tokens_total,
        line.output_tokens,
        line.prefix_tokens,
        line.reasoning_output_tokens,
        began,
        ended,
        _input_kind(line),
        "tool" if line.tools else "text" if says else None,
        tool_key(tool.tool_name for tool in line.tools),
        max((tool.took_s for tool in line.tools), default=None),
    )


def _stretch(events: Sequence[_Event]) -> tuple[float | None, float | None]:
    """When the model was called and when its last output came, seconds since 1970."""
    timed = [(event.event_type, _seconds(event.timestamp)) for event in events if event.timestamp]
    outputs = [at for kind, at in timed if kind in _ANSWERS]
    inputs = [at for kind, at in timed if kind in _BEFORE and (not outputs or at <= outputs[0])]
    began = max(inputs, default=outputs[0] if outputs else None)
    return began, max(outputs, default=None)


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _input_kind(line: _Line) -> str | None:
    people, tools = line.current_user_message_count, line.current_tool_result_count
    if not people and not tools:
        return None
    return "mixed" if people and tools else "user" if people else "tool"


def _frame(rounds: list[_Round], first: float) -> pl.DataFrame:
    began, ended = column(rounds, "began"), column(rounds, "ended")
    took = [e - b if b is not None and e is not None else None for b, e in zip(began, ended, strict=True)]
    return pl.DataFrame(
        {
            "t_s": pl.Series([None if at is None else at - first for at in began], dtype=pl.Float64),
            "model": pl.Series(column(rounds, "model"), dtype=pl.String),
            "program_id": column(rounds, "session_id"),
            "round_index": column(rounds, "round_index"),
            "in_tok": column(rounds, "in_tok"),
            "out_tok": column(rounds, "out_tok"),
            "e2e_s": pl.Series(took, dtype=pl.Float64),
            "input_kind": pl.Series(column(rounds, "input_kind"), dtype=pl.Enum(INPUT_KINDS)),
            "finish": pl.Series(column(rounds, "finish"), dtype=pl.Enum(FINISHES)),
            "tool": pl.Series(column(rounds, "tool"), dtype=pl.String),
            "tool_s": pl.Series(column(rounds, "tool_s"), dtype=pl.Float64),
            "found_tok": pl.Series(column(rounds, "found_tok"), dtype=pl.Int64),
            "reasoning_tok": pl.Series(column(rounds, "reasoning_tok"), dtype=pl.Int64),
            "provider": pl.Series(column(rounds, "provider"), dtype=pl.String),
            "round_id": pl.Series(column(rounds, "round_id"), dtype=pl.String),
        }
    ).with_columns(pl.lit("agent").alias("kind"), pl.lit("unknown").alias("status"))


def _once(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    """Logs that were resumed or forked repeat rounds of the session: each is kept once."""
    key = ("program_id", "round_index", "round_id")
    first = frame.select(pl.struct(key).is_first_distinct()).to_series()
    again = first.not_().arg_true()
    if not again.len():
        return frame.drop("round_id"), []
    if ROW not in frame.columns:
        frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW))
    rows = tuple(frame[ROW].gather(again.head(10)).to_list())
    text = "rounds that an earlier row of their session holds already; left out"
    return frame.filter(first).drop("round_id"), [Finding("repeats", "info", again.len(), text, rows)]


def _with_turns(frame: pl.DataFrame) -> pl.DataFrame:
    """Turns by the source's own count, ties in its order."""
    ordered = frame.with_row_index("at").sort("program_id", "round_index", "at")
    end = (pl.col("t_s") + pl.col("e2e_s")).shift(1).over("program_id")
    ordered = ordered.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).over("program_id").alias("turn"),
        (pl.col("t_s") - end).alias("gap_before_s"),
    )
    return ordered.sort("at").drop("at", "round_index")


def read_table(source: Source, head: Head, progress: Progress) -> Draft:
    """The CSV for simulators. A wait after a round means that it called tools; a session's arrival is the exporter's
    invention, so there are no times."""
    frame, problems = read_csv(source, COLUMNS, REQUIRED)
    waited = pl.col("tool_wait_after_ms").shift(1).over("program_id") / 1e3
    frame = frame.rename({"id": "program_id", "output_len": "out_tok", "prefix_len": "found_tok"})
    frame = frame.with_row_index("at").sort("program_id", "round_idx", "at")
    frame = frame.with_columns(
        (pl.col("input_len") + pl.col("found_tok")).alias("in_tok"),
        pl.int_range(pl.len(), dtype=pl.Int32).over("program_id").alias("turn"),
        waited.alias("gap_before_s"),
        pl.when(pl.col("tool_wait_after_ms") > 0).then(pl.lit("tool", pl.Enum(FINISHES))).alias("finish"),
        pl.lit("agent").alias("kind"),
        pl.lit("unknown").alias("status"),
    ).sort("at")
    frame = frame.drop("at", "round_idx", "input_len", "tool_wait_after_ms", "arrival_time", strict=False)
    notes = (
        "No arrival times: those of the file were made up by its exporter.",
        "gap_before_s is the sum of the tools' times of the round before: neither people nor the agent are in it.",
        "found_tok is what the provider's own cache held.",
    )
    return Draft(frame, _info(source, notes), problems)


def _info(source: Source, notes: tuple[str, ...]) -> TraceInfo:
    return TraceInfo(
        source=source.path.name,
        format="tracelab",
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=notes,
    )
