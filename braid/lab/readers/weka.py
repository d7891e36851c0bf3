"""Coding-agent sessions of callanjfox/kv-cache-tester: the derived CSV, and raw JSON with nested sub-agents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.bad import Problems
from braid.lab.readers.csvfile import read_csv
from braid.lab.readers.draft import Draft
from braid.lab.readers.endings import finish_of, input_kind_of
from braid.lab.readers.numbers import Count, Length, with_rows
from braid.lab.readers.source import NOT_JSON, Head, Source, head_of, open_source
from braid.lab.table import FINISHES, INPUT_KINDS, TraceError, TraceInfo

COLUMNS = {
    "trace": pl.String,
    "agent": pl.String,
    "idx": pl.Int64,
    "t_s": pl.Float64,
    "in_tok": pl.Int64,
    "out_tok": pl.Int64,
    "lcp_prev_tok": pl.Int64,
    "best_prefix_tok": pl.Int64,
    "think_s": pl.Float64,
    "api_s": pl.Float64,
    "ttft_s": pl.Float64,
    "stop": pl.String,
    "itypes": pl.String,
    "otypes": pl.String,
    "model": pl.String,
}
REQUIRED = ("trace", "agent", "idx", "t_s", "in_tok", "out_tok")
LICENCE = "Apache-2.0"
CITATION = "callanjfox/kv-cache-tester, GitHub"
BLOCK_SIZE = 64
_ROOT = "root"
_ID_BITS = 32
_NO_CLOCK = "No common clock: t_program_s counts from each program's own first request, t_s is unknown."


def sees_csv(head: Head) -> bool:
    return {"trace", "agent", "idx", "think_s", "best_prefix_tok"} <= set(head.columns)


def read_table(source: Source, head: Head, progress: Progress) -> Draft:
    """A program is an agent of a session; a sub-agent's parent is the agent that its name extends."""
    frame, problems = read_csv(source, COLUMNS, REQUIRED)
    names = {"t_s": "t_program_s", "best_prefix_tok": "cached_tok"}
    names |= {"think_s": "gap_before_s", "api_s": "e2e_s", "trace": "session"}
    frame = frame.rename(names, strict=False)
    agent = pl.col("agent")
    frame = frame.with_columns(
        pl.concat_str("session", agent, separator="/").alias("program_id"),
        pl.when(agent.str.contains(".", literal=True))
        .then(pl.concat_str("session", agent.str.replace(r"\.[^.]*$", ""), separator="/"))
        .alias("parent_id"),
        pl.lit("agent").alias("kind"),
        _status(pl.col("stop")) if "stop" in frame.columns else pl.lit("unknown").alias("status"),
        *_endings(frame, problems),
    ).drop("agent")
    # The file's idx counts the places where sub-agents began, too.
    turn = pl.col("idx").rank("ordinal").over("program_id").cast(pl.Int32) - 1
    frame = frame.with_columns(turn.alias("turn"))
    notes = (
        _NO_CLOCK,
        "When a sub-agent began is not in this file.",
        "cached_tok is in whole blocks of 64 tokens, over all earlier requests of the session.",
    )
    return Draft(frame, _info(source.path.name, source.sha256, None, notes), problems)


def _endings(frame: pl.DataFrame, problems: Problems) -> list[pl.Series]:
    """``finish`` and ``input_kind``, where their columns are there. A row without ``stop`` stays without a finish: what
    the next turn brings does not tell it (where ``stop`` is missing, text follows, and after seconds)."""
    made = []
    if "stop" in frame.columns:
        words = frame["stop"].to_list()
        problems.unknown.update(f"stop '{word}'" for word in words if word and finish_of(word) is None)
        made.append(_finishes(words))
    if "itypes" in frame.columns:
        kinds = {text: input_kind_of(text.split("|")) for text in frame["itypes"].drop_nulls().unique()}
        kind = frame["itypes"].replace_strict(kinds, default=None, return_dtype=pl.Enum(INPUT_KINDS))
        made.append(kind.alias("input_kind"))
    return made


def _finishes(words: list[str | None]) -> pl.Series:
    return pl.Series("finish", [finish_of(word) for word in words], dtype=pl.Enum(FINISHES))


def _status(stop: pl.Expr) -> pl.Expr:
    return pl.when(stop.is_null()).then(pl.lit("unknown")).otherwise(pl.lit("ok")).alias("status")


def _info(name: str, sha256: str, block_size: int | None, notes: tuple[str, ...]) -> TraceInfo:
    return TraceInfo(
        source=name,
        format="weka" if block_size is None else "weka-raw",
        t_quantum_s=1.0,
        block_size=block_size,
        sha256=sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=notes,
    )


_LocalId = Annotated[int, msgspec.Meta(ge=0, le=(1 << _ID_BITS) - 1)]


class _Call(msgspec.Struct, rename={"in_tok": "in", "out_tok": "out"}):
    """A request, or a sub-agent, which nests its own."""

    type: str
    t: Length
    in_tok: Count | None = None
    out_tok: Count | None = None
    model: str | None = None
    hash_ids: list[_LocalId] = []
    input_types: list[str] = []
    stop: str | None = None
    api_time: Length | None = None
    think_time: Length | None = None
    ttft: Length | None = None
    agent_id: str = ""
    requests: list[msgspec.Raw] | None = None


class _Session(msgspec.Struct):
    id: str
    requests: list[msgspec.Raw]
    block_size: int = BLOCK_SIZE


class _Turn(NamedTuple):
    program_id: str
    parent_id: str | None
    turn: int
    began_s: float
    call: _Call


@dataclass(slots=True)
class _Walk:
    """All requests of all sessions, in the files' order; every entry has a row number, sub-agents' entries too."""

    problems: Problems = field(default_factory=Problems)
    rows: int = 0

    def turns(
        self, entries: list[msgspec.Raw], name: str, parent: str | None, began: float
    ) -> Iterator[tuple[int, _Turn]]:
        turn = 0
        for raw in entries:
            self.rows += 1
            call = self._decoded(raw)
            if call is None:
                continue
            if call.requests is not None:
                inner = f"{name}.{call.agent_id or f'agent_at_{self.rows}'}"
                yield from self.turns(call.requests, inner, name, call.t)
                continue
            yield self.rows, _Turn(name, parent, turn, began, call)
            turn += 1

    def _decoded(self, raw: msgspec.Raw) -> _Call | None:
        try:
            call = msgspec.json.decode(raw, type=_Call)
        except NOT_JSON as error:
            self.problems.add(self.rows, str(error))
            return None
        if call.requests is None and (call.in_tok is None or call.out_tok is None):
            self.problems.add(self.rows, "a request without 'in' or 'out'")
            return None
        return call


def sees_raw(head: Head) -> bool:
    return {"id", "requests", "hash_id_scope"} <= set(head.first)


def read_raw(source: Source, head: Head, progress: Progress) -> Draft:
    """One session."""
    return _read_sessions(source.path.name, [source], source.sha256, progress)


def read_folder(folder: Path, files: list[Path], sha256: str, progress: Progress) -> Draft:
    """A folder of sessions, one file each."""
    sources = [open_source(path) for path in files]
    return _read_sessions(folder.name, sources, sha256, progress)


def is_session(path: Path) -> bool:
    """True for a file that holds one raw session."""
    return sees_raw(head_of(open_source(path).data))


def _read_sessions(name: str, sources: list[Source], sha256: str, progress: Progress) -> Draft:
    walk, turns, numbers, sessions, sizes = _Walk(), [], [], [], set()
    for place, source in enumerate(sources):
        session = _session(source)
        sizes.add(session.block_size)
        for number, turn in walk.turns(session.requests, f"{session.id}/{_ROOT}", None, 0.0):
            turns.append(turn)
            numbers.append(number)
            sessions.append((session.id, place))
        progress.update(f"reading {name}", place + 1, len(sources))
    if not turns:
        raise TraceError(f"{name}: no usable request")
    if len(sizes) > 1:
        raise TraceError(f"{name}: sessions of different block sizes {sorted(sizes)}: load them one by one")
    notes = (
        _NO_CLOCK,
        "starts_at_s: when a sub-agent began, on its parent's t_program_s; 0 for others.",
        "Block ids hold whole blocks only: a prompt's last, partial block has none.",
        "Block ids are local to a session in the source; here the session's number is in the upper bits.",
    )
    info = _info(name, sha256, sizes.pop(), notes)
    return Draft(with_rows(_frame(turns, sessions), numbers, walk.problems), info, walk.problems)


def _session(source: Source) -> _Session:
    try:
        return msgspec.json.decode(source.data, type=_Session)
    except NOT_JSON as error:
        raise TraceError(f"{source.path}: is no session: {error}") from None


def _frame(turns: list[_Turn], sessions: list[tuple[str, int]]) -> pl.DataFrame:
    calls = [turn.call for turn in turns]
    ids = [
        [(place << _ID_BITS) | i for i in c.hash_ids] for c, (_, place) in zip(calls, sessions, strict=True)
    ]
    columns: dict[str, Any] = {
        "t_s": pl.Series([None] * len(turns), dtype=pl.Float64),
        "model": [call.model for call in calls],
        "program_id": [turn.program_id for turn in turns],
        "turn": pl.Series([turn.turn for turn in turns], dtype=pl.Int32),
        "parent_id": pl.Series([turn.parent_id for turn in turns], dtype=pl.String),
        "in_tok": [call.in_tok for call in calls],
        "out_tok": [call.out_tok for call in calls],
        "e2e_s": pl.Series([call.api_time for call in calls], dtype=pl.Float64),
        "ttft_s": pl.Series([call.ttft for call in calls], dtype=pl.Float64),
        "gap_before_s": pl.Series([call.think_time for call in calls], dtype=pl.Float64),
        "block_ids": pl.Series(ids, dtype=pl.List(pl.Int64)),
        "session": [name for name, _ in sessions],
        "t_program_s": pl.Series([call.t for call in calls], dtype=pl.Float64),
        "starts_at_s": pl.Series([turn.began_s for turn in turns], dtype=pl.Float64),
        "stop": pl.Series([call.stop or None for call in calls], dtype=pl.String),
        "input_kind": pl.Series([input_kind_of(c.input_types) for c in calls], dtype=pl.Enum(INPUT_KINDS)),
        "finish": _finishes([call.stop for call in calls]),
    }
    return pl.DataFrame(columns).with_columns(pl.lit("agent").alias("kind"), _status(pl.col("stop")))
