"""Rows that had to be left out, with the reason, and the findings made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from braid.lab.table import Finding

_EXAMPLES = 10
_IN_TEXT = 3


class BadRow(NamedTuple):
    row: int
    reason: str


@dataclass(slots=True)
class Problems:
    """What a reader could not use.

    Args:
        num_rows: rows left out.
        examples: the first of them.
        kinds: how many of each sort of reason.
        half_line: the row number of a last line that breaks off.
        unknown: values outside the source's known ones, kept as null, by column and value.
        other_keys: JSON keys of the first row that no one knows; they are not kept.
    """

    num_rows: int = 0
    examples: list[BadRow] = field(default_factory=list)
    half_line: int | None = None
    unknown: Counter[str] = field(default_factory=Counter)
    other_keys: tuple[str, ...] = ()

    def add(self, row: int, reason: str) -> None:
        """Count one more row that is left out."""
        self.num_rows += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(BadRow(row, reason))

    def findings(self) -> list[Finding]:
        """``bad_rows`` and ``half_line``, where there are any."""
        found = []
        if self.num_rows:
            found.append(Finding("bad_rows", "error", self.num_rows, self._text(), self._rows()))
        if self.half_line is not None:
            text = f"the last line (row {self.half_line}) breaks off: the file was cut"
            found.append(Finding("half_line", "error", 1, text, (self.half_line,)))
        if self.unknown:
            shown = ", ".join(f"{what} ({count:,})" for what, count in self.unknown.most_common(5))
            count = sum(self.unknown.values())
            found.append(Finding("unknown_values", "warning", count, f"kept as unknown: {shown}"))
        if self.other_keys:
            text = f"keys that nobody knows, not kept: {', '.join(self.other_keys)}"
            found.append(Finding("other_keys", "info", len(self.other_keys), text))
        return found

    def _text(self) -> str:
        reasons = "; ".join(f"row {row}: {reason}" for row, reason in self.examples[:_IN_TEXT])
        more = "; ..." if self.num_rows > _IN_TEXT else ""
        return f"rows left out: {reasons}{more}"

    def _rows(self) -> tuple[int, ...]:
        return tuple(row for row, _ in self.examples)
