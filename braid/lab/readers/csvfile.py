"""CSV by header name: all rows at once where all are right, line by line around those that are not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from braid.lab.readers.bad import Problems
from braid.lab.readers.source import Source, csv_cells, head_of
from braid.lab.table import TraceError

ROW = "source_row"
"""Extra column with the row number of the source (from 1, the header not counted), there only where rows were left
out or reordered; without it a row's number is its place."""
_SHOWN = 40
_PIECES = (1 << 23, 1 << 17)


def read_csv(
    source: Source, columns: Mapping[str, Any], required: Collection[str]
) -> tuple[pl.DataFrame, Problems]:
    """Read by header name.

    Args:
        columns: the known columns and their types: ``Int64``, ``Float64`` or ``String``. Others stay strings.
        required: of these, the columns that every row must fill.

    Returns:
        The usable rows in the file's order (with ``ROW`` if some were left out). Numbers are finite and not negative.

    Raises:
        TraceError: a known column is missing or named twice, or no row is usable.
    """
    names = head_of(source.data).columns
    _check_names(source, names, columns, required)
    plan = _Plan(_unique(names), columns, tuple(required))
    frame = _all_at_once(source.data, plan)
    if frame is None:
        return _in_pieces(source, plan)
    if not frame.height:
        raise TraceError(f"{source.path}: has a header and no rows")
    return frame, Problems()


class _Plan(NamedTuple):
    """Args:
    names: the header's cells, all different.
    columns: the known ones' types.
    required: what every row must fill.
    """

    names: tuple[str, ...]
    columns: Mapping[str, Any]
    required: tuple[str, ...]

    def type_of(self, name: str) -> Any:
        return self.columns.get(name, pl.String)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name if names.index(name) == at else f"{name}_{at}" for at, name in enumerate(names))


def _check_names(
    source: Source, names: tuple[str, ...], columns: Mapping[str, Any], required: Collection[str]
) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise TraceError(
            f"{source.path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; has {', '.join(names)}"
        )
    twice = sorted({name for name in names if names.count(name) > 1 and name in columns})
    if twice:
        raise TraceError(f"{source.path}: names the column {twice[0]} twice")


def _all_at_once(data: bytes, plan: _Plan) -> pl.DataFrame | None:
    """None where any row is wrong."""
    schema = {name: plan.type_of(name) for name in plan.names}
    try:
        frame = pl.read_csv(data, has_header=True, schema=schema)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    texts = [name for name, dtype in schema.items() if dtype == pl.String and (frame[name] == "").any()]
    frame = frame.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in texts)
    return None if _is_wrong(frame, plan) else frame


def _is_wrong(frame: pl.DataFrame, plan: _Plan) -> bool:
    checks = [pl.col(name).has_nulls() for name in plan.required]
    for name, dtype in plan.columns.items():
        if name in frame.columns and dtype in (pl.Int64, pl.Float64):
            checks.append((pl.col(name) < 0).any())
            if dtype == pl.Float64:
                checks.append((~pl.col(name).is_finite()).any())
    return bool(frame.select(pl.any_horizontal(checks)).item())


def _in_pieces(source: Source, plan: _Plan) -> tuple[pl.DataFrame, Problems]:
    """Narrow wrong rows down, so that a few of them among millions cost little."""
    data, problems = source.data, Problems()
    begin = data.find(b"\n") + 1 or len(data)
    walk = _Walk(data[:begin].rstrip(b"\r\n") + b"\n", plan, problems)
    walk.read(data[begin:], _PIECES)
    frame = pl.concat(walk.frames) if walk.frames else pl.DataFrame()
    if walk.last_is_bad and not data.endswith((b"\n", b"\r")):
        problems.half_line = walk.last_row
    if not frame.height:
        reasons = "; ".join(finding.text for finding in problems.findings()) or "has a header and no rows"
        raise TraceError(f"{source.path}: no usable row; {reasons}")
    return (frame if problems.num_rows else frame.drop(ROW)), problems


@dataclass(slots=True)
class _Walk:
    """Args:
    header: the header's line.
    frames: the usable rows so far, with ``ROW``.
    num_lines: lines so far, blank ones too.
    last_row: the number of the last row that is not blank, and whether it was left out.
    """

    header: bytes
    plan: _Plan
    problems: Problems
    frames: list[pl.DataFrame] = field(default_factory=list)
    num_lines: int = 0
    last_row: int = 0
    last_is_bad: bool = False

    def read(self, data: bytes, sizes: tuple[int, ...]) -> None:
        """Pieces of ``sizes[0]`` bytes at once; those with a wrong row in smaller ones; the smallest by line."""
        if not sizes:
            self._by_line(data)
            return
        for piece in _pieces(data, sizes[0]):
            frame = _all_at_once(self.header + piece, self.plan)
            if frame is None or frame.height != piece.count(b"\n") + (not piece.endswith(b"\n")):
                self.read(piece, sizes[1:])
            elif frame.height:
                self._keep(frame)

    def _keep(self, frame: pl.DataFrame) -> None:
        first = self.num_lines + 1
        self.num_lines += frame.height
        self.last_row, self.last_is_bad = self.num_lines, False
        rows = pl.int_range(first, self.num_lines + 1, dtype=pl.UInt32, eager=True).alias(ROW)
        self.frames.append(frame.with_columns(rows))

    def _by_line(self, data: bytes) -> None:
        rows = _judged(_cells(data, self.num_lines + 1), self.plan)
        self.num_lines += data.count(b"\n") + (not data.endswith(b"\n"))
        if not rows.height:
            return
        for row, reason in rows.filter(pl.col("reason").is_not_null()).select("row", "reason").iter_rows():
            self.problems.add(row, reason)
        self.last_row, self.last_is_bad = rows["row"][-1], rows["reason"][-1] is not None
        good = rows.filter(pl.col("reason").is_null())
        typed = [
            _value(_raw(place), self.plan.type_of(name)).alias(name)
            for place, name in enumerate(self.plan.names)
        ]
        self.frames.append(good.select(*typed, pl.col("row").cast(pl.UInt32).alias(ROW)))


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, about ``size`` bytes together."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin + size) + 1 or len(data)
        yield data[begin:end]
        begin = end


def _judged(cells: pl.DataFrame, plan: _Plan) -> pl.DataFrame:
    """With ``reason``: why a row is unusable; null where it is not."""
    reasons = [_count_reason(len(plan.names))]
    for place, name in enumerate(plan.names):
        if name in plan.columns:
            raw, dtype = _raw(place), plan.columns[name]
            reasons.append(_reason(name, raw, _value(raw, dtype), dtype, name in plan.required))
    return cells.with_columns(pl.coalesce(reasons).alias("reason"))


def _raw(place: int) -> pl.Expr:
    """A cell's text; null where it is blank."""
    raw = pl.col("cells").list.get(place, null_on_oob=True).str.strip_chars()
    return pl.when(raw != "").then(raw)


def _cells(data: bytes, first: int) -> pl.DataFrame:
    """``row`` (from ``first``) and ``cells`` of every line that is not blank."""
    lines = data.decode("utf-8", "replace").split("\n")
    frame = pl.DataFrame({"line": lines}, schema={"line": pl.String}).with_row_index("row", first)
    frame = frame.with_columns(pl.col("line").str.strip_chars_end("\r"))
    frame = frame.filter(pl.col("line").str.strip_chars() != "")
    plain = frame.with_columns(pl.col("line").str.split(",").alias("cells"))
    quoted = plain.filter(pl.col("line").str.contains('"', literal=True))
    if quoted.height:
        split = [csv_cells(line) for line in quoted["line"]]
        fixed = quoted.select("row").with_columns(pl.Series("split", split, dtype=pl.List(pl.String)))
        plain = plain.join(fixed, on="row", how="left", maintain_order="left")
        plain = plain.with_columns(pl.coalesce("split", "cells").alias("cells")).drop("split")
    return plain


def _value(raw: pl.Expr, dtype: Any) -> pl.Expr:
    if dtype == pl.Int64:
        number = raw.cast(pl.Float64, strict=False)
        whole = pl.when(number == number.floor()).then(number).cast(pl.Int64, strict=False)
        return pl.coalesce(raw.cast(pl.Int64, strict=False), whole)
    return raw.cast(dtype, strict=False)


def _count_reason(num: int) -> pl.Expr:
    found = pl.col("cells").list.len()
    return pl.when(found != num).then(pl.format("{} fields where the header has {}", found, pl.lit(num)))


def _reason(name: str, raw: pl.Expr, value: pl.Expr, dtype: Any, required: bool) -> pl.Expr:
    """Why a cell makes its row unusable; null where it does not."""
    reasons: list[pl.Expr] = []
    if required:
        reasons.append(pl.when(raw.is_null()).then(pl.lit(f"{name} is missing")))
    if dtype != pl.String:
        kind = "a whole number" if dtype == pl.Int64 else "a number"
        wrong = raw.is_not_null() & value.is_null()
        reasons.append(pl.when(wrong).then(_says(name, raw, f"not {kind}")))
        reasons.append(pl.when(value < 0).then(_says(name, raw, "negative")))
    if dtype == pl.Float64:
        reasons.append(pl.when(~value.is_finite()).then(_says(name, raw, "not finite")))
    return pl.coalesce(reasons or [pl.lit(None, dtype=pl.String)])


def _says(name: str, raw: pl.Expr, what: str) -> pl.Expr:
    return pl.format("{} is '{}', {}", pl.lit(name), raw.str.slice(0, _SHOWN), pl.lit(what))
