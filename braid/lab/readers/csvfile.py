"""CSV by header name: all rows at once where all are right, line by line where some are not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from braid.lab.readers.bad import Problems
from braid.lab.readers.source import Source, csv_cells, head_of
from braid.lab.table import TraceError

ROW = "source_row"
"""Extra column with the row number of the source (from 1, the header not counted), there only where rows were left
out or reordered; without it a row's number is its place."""
_SHOWN = 40


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
    frame = _all_at_once(source.data, names, columns)
    if frame is not None and not _is_wrong(frame, columns, required):
        if not frame.height:
            raise TraceError(f"{source.path}: has a header and no rows")
        return frame, Problems()
    return _line_by_line(source, names, columns, required)


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


def _all_at_once(data: bytes, names: tuple[str, ...], columns: Mapping[str, Any]) -> pl.DataFrame | None:
    unique = [name if names.index(name) == at else f"{name}_{at}" for at, name in enumerate(names)]
    schema = {name: columns.get(name, pl.String) for name in unique}
    try:
        frame = pl.read_csv(data, has_header=True, schema=schema)
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    texts = [name for name, dtype in schema.items() if dtype == pl.String and (frame[name] == "").any()]
    return frame.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in texts)


def _is_wrong(frame: pl.DataFrame, columns: Mapping[str, Any], required: Collection[str]) -> bool:
    checks = [pl.col(name).has_nulls() for name in required]
    for name, dtype in columns.items():
        if name in frame.columns and dtype in (pl.Int64, pl.Float64):
            checks.append((pl.col(name) < 0).any())
            if dtype == pl.Float64:
                checks.append((~pl.col(name).is_finite()).any())
    return bool(frame.select(pl.any_horizontal(checks)).item())


def _line_by_line(
    source: Source, names: tuple[str, ...], columns: Mapping[str, Any], required: Collection[str]
) -> tuple[pl.DataFrame, Problems]:
    cells = _cells(source.data)
    typed, reasons = [], [_count_reason(len(names))]
    kept = [name for at, name in enumerate(names) if names.index(name) == at]
    for name in kept:
        raw = pl.col("cells").list.get(names.index(name), null_on_oob=True).str.strip_chars()
        raw = pl.when(raw != "").then(raw)
        value = _value(raw, columns.get(name, pl.String))
        typed.append(value.alias(name))
        if name in columns:
            reasons.append(_reason(name, raw, value, columns[name], name in required))
    rows = cells.with_columns(pl.coalesce(reasons).alias("reason"))
    bad = rows.filter(pl.col("reason").is_not_null())
    problems = Problems()
    for row, reason in bad.select("row", "reason").iter_rows():
        problems.add(row, reason)
    good = rows.filter(pl.col("reason").is_null()).select(*typed, pl.col("row").cast(pl.UInt32).alias(ROW))
    if cut := _cut_row(source.data, cells, bad):
        problems.half_line = cut
    if not good.height:
        raise TraceError(f"{source.path}: no usable row; {'; '.join(f.text for f in problems.findings())}")
    return (good if bad.height else good.drop(ROW)), problems


def _cells(data: bytes) -> pl.DataFrame:
    """``row`` (from 1) and ``cells`` of every line but the header and blank ones."""
    lines = data.decode("utf-8", "replace").split("\n")
    frame = pl.DataFrame({"line": lines[1:]}, schema={"line": pl.String}).with_row_index("row", 1)
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


def _cut_row(data: bytes, cells: pl.DataFrame, bad: pl.DataFrame) -> int | None:
    """The last row, if it is unusable and has no line end."""
    if data.endswith((b"\n", b"\r")) or not bad.height or bad["row"][-1] != cells["row"][-1]:
        return None
    return int(bad["row"][-1])
