"""JSON lines, every line checked against a struct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

from braid.lab.progress import Progress
from braid.lab.readers.bad import Problems
from braid.lab.readers.source import NOT_JSON, Source
from braid.lab.table import TraceError

Line = TypeVar("Line")
Row = TypeVar("Row")
_EVERY = 10_000


@overload
def read_lines(
    source: Source, kind: type[Line], progress: Progress
) -> tuple[list[Line], list[int], Problems]: ...


@overload
def read_lines(
    source: Source, kind: type[Line], progress: Progress, made: Callable[[Line], Row]
) -> tuple[list[Row], list[int], Problems]: ...


def read_lines(
    source: Source, kind: type[Line], progress: Progress, made: Callable[[Line], Any] | None = None
) -> tuple[list[Any], list[int], Problems]:
    """Decode every line.

    Args:
        made: what is kept of a line, where that is less than the line; None for the line itself.

    Returns:
        The usable rows, their numbers (from 1, blank lines not counted), and what was left out.

    Raises:
        TraceError: no line is usable.
    """
    decode = msgspec.json.Decoder(kind).decode
    rows: list[Any] = []
    numbers: list[int] = []
    problems = Problems()
    lines = [line for line in source.data.split(b"\n") if line and not line.isspace()]
    ends = source.data.endswith(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = decode(line)
            rows.append(row if made is None else made(row))
            numbers.append(number)
        except msgspec.ValidationError as error:
            problems.add(number, str(error))
        except NOT_JSON as error:
            problems.add(number, f"not JSON: {error}")
            if number == len(lines) and not ends:
                problems.half_line = number
        if number % _EVERY == 0:
            progress.update(f"reading {source.path.name}", number, len(lines))
    if not rows:
        raise TraceError(f"{source.path}: no usable line; {problems.findings()[0].text}")
    problems.other_keys = _other_keys(lines[numbers[0] - 1], kind)
    return rows, numbers, problems


def _other_keys(line: bytes, kind: type[Any]) -> tuple[str, ...]:
    known = kind.__struct_encode_fields__
    return tuple(key[:40] for key in msgspec.json.decode(line) if key not in known)[:20]


def column(rows: list[Any], name: str) -> list[Any]:
    """One attribute of every row."""
    return [getattr(row, name) for row in rows]
