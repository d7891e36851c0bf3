"""The access log: one line per HTTP request, never with text from a prompt."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping

from braid.core.hashing import Hasher
from braid.server.lifecycle import RequestRecord

access_logger = logging.getLogger("braid.access")

POLLED = frozenset(("/health", "/ready", "/metrics", "/v1/sessions"))
"""What monitors ask every few seconds: logged at debug level."""
_LONGEST_VALUE = 200
_BARE = re.compile(r"[\w./:+-]+", re.ASCII)

Value = str | int | float


class AccessLine:
    """The fields of one line; as a string they are logfmt."""

    def __init__(self, fields: Mapping[str, Value]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        return logfmt(self.fields)


def logfmt(fields: Mapping[str, Value]) -> str:
    """``name=value`` pairs; JSON quoting escapes blanks, quotes and control characters of a value."""
    return " ".join(f"{name}={_logfmt_value(value)}" for name, value in fields.items())


def _logfmt_value(value: Value) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value)
    return repr(value)


class JsonFormatter(logging.Formatter):
    """Each log line as one JSON object; an access line's fields are its keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Value] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, AccessLine):
            line |= record.msg.fields
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_request(record: RequestRecord, method: str, path: str, hasher: Hasher) -> None:
    """Write one line."""
    level = logging.DEBUG if path in POLLED else logging.INFO
    if access_logger.isEnabledFor(level):
        access_logger.log(level, AccessLine(_fields(record, method, path, hasher)))


def _fields(record: RequestRecord, method: str, path: str, hasher: Hasher) -> dict[str, Value]:
    fields: dict[str, Value] = {
        "id": record.request_id,
        "method": method[:_LONGEST_VALUE],
        "path": path[:_LONGEST_VALUE],
        "status": record.status,
    }
    if record.principal.name:
        fields["key"] = record.principal.name[:_LONGEST_VALUE]
    if record.program is not None:
        fields["program"] = hasher.name(record.program.owner, record.program.program)
    if record.usage is not None:
        usage = record.usage()
        fields["prompt_tokens"] = usage.num_prompt_tokens
        fields["cached_tokens"] = usage.num_cached_tokens
        fields["output_tokens"] = usage.num_output_tokens
    call = record.call
    if call is not None:
        if call.ttft is not None:
            fields["ttft_ms"] = round(call.ttft * 1000, 1)
        if call.finish_reason is not None:
            fields["finish"] = call.finish_reason
    fields["ms"] = round((time.perf_counter() - record.start) * 1000, 1)
    return fields
