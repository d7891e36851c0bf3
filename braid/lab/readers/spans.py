"""OpenTelemetry-like spans of model calls: flat rows, the SDK's JSON, or OTLP JSON with ``resourceSpans``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.bad import Problems
from braid.lab.readers.draft import Draft, with_turns
from braid.lab.readers.endings import finish_of
from braid.lab.readers.numbers import with_rows
from braid.lab.readers.source import NOT_JSON, Head, Source
from braid.lab.table import FINISHES, STATUSES, Finding, TraceError, TraceInfo

INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "input_tokens")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "output_tokens")
MODEL = ("gen_ai.response.model", "gen_ai.request.model", "response_model", "request_model")
SESSION = ("gen_ai.conversation.id", "session.id", "session_id")
CACHED = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_tokens")
TTFT = ("gen_ai.server.time_to_first_token",)
FINISH = ("gen_ai.response.finish_reasons", "finish_reasons")
_CONTAINERS = ("resourceSpans", "scopeSpans", "spans")
_EXTRAS = ("harness", "benchmark", "input_messages_hash")
_NANO = 10**9


class _Span(NamedTuple):
    start_ns: int
    end_ns: int | None
    model: str | None
    program_id: str | None
    in_tok: int | None
    out_tok: int | None
    found_tok: int | None
    failed: bool
    ttft_s: float | None
    span_id: str | None
    finish: str | None
    extras: tuple[Any, ...]


def sees(head: Head) -> bool:
    keys = set(head.first)
    flat = {"span_id", "start_time_s", "input_tokens"} <= keys
    sdk = bool({"start_time", "startTimeUnixNano", "start_time_unix_nano"} & keys) and "attributes" in keys
    return flat or sdk or "resourceSpans" in keys


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """Spans that name no token usage are no model calls: left aside and counted. Calls of one session may overlap,
    which makes ``gap_before_s`` negative."""
    problems, spans, numbers, aside = Problems(), [], [], 0
    for number, entry in _entries(source, head, problems):
        try:
            span = _span(entry)
        except ValueError as error:
            problems.add(number, str(error))
            continue
        if span is None:
            aside += 1
        else:
            spans.append(span)
            numbers.append(number)
    if not spans:
        text = problems.findings()[0].text if problems.num_rows else f"{aside} spans name no token usage"
        raise TraceError(f"{source.path}: no usable span; {text}")
    first = min(span.start_ns for span in spans)
    frame = with_rows(with_turns(_frame(spans, first)), numbers, problems)
    findings = [_aside(aside)] if aside else []
    return Draft(frame, _info(source, first), problems, findings)


def _aside(count: int) -> Finding:
    return Finding("other_spans", "info", count, "spans without token usage: no model calls, left aside")


def _info(source: Source, first: int) -> TraceInfo:
    began = f"{first / _NANO:.6f} s on the source's clock"
    return TraceInfo(
        source=source.path.name,
        format="spans",
        sha256=source.sha256,
        notes=(
            f"t_s = 0 is {began}.",
            "A negative gap_before_s is a call that began before the previous one ended.",
        ),
    )


def _entries(source: Source, head: Head, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if head.whole is not None:
        yield from enumerate(_flattened(head.whole), 1)
        return
    number = 0
    lines = [line for line in source.data.split(b"\n") if line.strip()]
    for place, line in enumerate(lines, 1):
        try:
            value = msgspec.json.decode(line)
        except NOT_JSON as error:
            number += 1
            problems.add(number, f"not JSON: {error}")
            if place == len(lines) and not source.data.endswith(b"\n"):
                problems.half_line = number
            continue
        for entry in _flattened(value):
            number += 1
            yield number, entry


def _flattened(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        for entry in value:
            yield from _flattened(entry)
    elif isinstance(value, dict):
        inner = [value[name] for name in _CONTAINERS if isinstance(value.get(name), list)]
        if not inner:
            yield value
        for entry in inner:
            yield from _flattened(entry)


def _span(entry: Mapping[str, Any]) -> _Span | None:
    fields = {**entry, **_attributes(entry.get("attributes"))}
    if all(_first(fields, names) is None for names in (INPUT, OUTPUT)):
        return None
    start = _time(fields, ("startTimeUnixNano", "start_time_unix_nano"), ("start_time", "start_time_s"))
    end = _time(fields, ("endTimeUnixNano", "end_time_unix_nano"), ("end_time", "end_time_s"))
    if start is None:
        raise ValueError("no start time")
    if end is not None and end < start:
        raise ValueError("ends before it starts")
    ttft = _first(fields, TTFT)
    if ttft is not None and (not isinstance(ttft, int | float) or ttft < 0):
        raise ValueError(f"{TTFT[0]} is {ttft!r}, no seconds")
    return _Span(
        start,
        end,
        _text(_first(fields, MODEL)),
        _text(_first(fields, SESSION)),
        _count(fields, INPUT),
        _count(fields, OUTPUT),
        _count(fields, CACHED),
        _failed(fields),
        ttft,
        _text(_first(fields, ("span_id", "spanId"))),
        _finish(_first(fields, FINISH)),
        tuple(_text(fields.get(name)) for name in _EXTRAS),
    )


def _attributes(value: Any) -> dict[str, Any]:
    """A dict as it is; OTLP's list of ``{"key", "value": {"intValue": "5"}}`` as a dict."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {}
    pairs = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("value"), dict)]
    return {str(entry.get("key")): _otlp(entry["value"]) for entry in pairs}


def _otlp(value: Mapping[str, Any]) -> Any:
    if "intValue" in value:
        text = str(value["intValue"])
        return int(text) if text.lstrip("-").isdigit() else text
    return next(iter(value.values()), None)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _count(fields: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    value = _first(fields, names)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{names[0]} is {value!r}, not a whole number")
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{names[0]} is {value!r}, negative or too large")
    return int(value)


def _finish(value: Any) -> str | None:
    """Of one word, of a list of them (one per choice, the first counts) or of such a list written as text."""
    if isinstance(value, dict) and isinstance(value.get("values"), list):
        value = [next(iter(entry.values()), None) for entry in value["values"] if isinstance(entry, dict)]
    if isinstance(value, list):
        value = next((entry for entry in value if isinstance(entry, str)), None)
    if not isinstance(value, str):
        return None
    words = value.strip("[]()").replace("'", " ").replace('"', " ").split(",")
    return finish_of(words[0].strip())


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(fields: Mapping[str, Any], nano: tuple[str, ...], other: tuple[str, ...]) -> int | None:
    """Nanoseconds: of a count of them, of seconds, or of an ISO time (UTC where it names no zone)."""
    if (value := _first(fields, nano)) is not None:
        if not str(value).isdigit():
            raise ValueError(f"{nano[0]} is {value!r}, no nanoseconds")
        return int(value)
    value = _first(fields, other)
    if value is None:
        return None
    if isinstance(value, str):
        return _iso(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{other[0]} is {value!r}, no time")
    return round(value * _NANO)


def _iso(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no ISO time") from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    whole = int(time.replace(microsecond=0).timestamp())
    return whole * _NANO + time.microsecond * 1000


def _failed(fields: Mapping[str, Any]) -> bool:
    if isinstance(fields.get("is_error"), bool):
        return bool(fields["is_error"])
    if fields.get("error.type"):
        return True
    status = fields.get("status")
    code = (
        status.get("status_code", status.get("code"))
        if isinstance(status, dict)
        else fields.get("status_code")
    )
    return code in ("ERROR", "STATUS_CODE_ERROR", 2) or (isinstance(code, int) and code >= 400)


def _frame(spans: list[_Span], first: int) -> pl.DataFrame:
    ends = [None if s.end_ns is None else (s.end_ns - s.start_ns) / _NANO for s in spans]
    frame = pl.DataFrame(
        {
            "t_s": [(span.start_ns - first) / _NANO for span in spans],
            "model": pl.Series([span.model for span in spans], dtype=pl.String),
            "kind": ["api" if span.program_id is None else "agent" for span in spans],
            "program_id": pl.Series([span.program_id for span in spans], dtype=pl.String),
            "in_tok": pl.Series([span.in_tok for span in spans], dtype=pl.Int64),
            "out_tok": pl.Series([span.out_tok for span in spans], dtype=pl.Int64),
            "status": pl.Series(["failed" if s.failed else "ok" for s in spans], dtype=pl.Enum(STATUSES)),
            "e2e_s": pl.Series(ends, dtype=pl.Float64),
            "ttft_s": pl.Series([span.ttft_s for span in spans], dtype=pl.Float64),
            "found_tok": pl.Series([span.found_tok for span in spans], dtype=pl.Int64),
            "span_id": pl.Series([span.span_id for span in spans], dtype=pl.String),
            "finish": pl.Series([span.finish for span in spans], dtype=pl.Enum(FINISHES)),
        }
    )
    extras = [
        pl.Series(name, [s.extras[i] for s in spans], dtype=pl.String) for i, name in enumerate(_EXTRAS)
    ]
    return frame.with_columns(series for series in extras if series.null_count() < frame.height)
