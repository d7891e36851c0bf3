"""Progress on long work, without a terminal: the command line shows it, tests and scripts pass nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears how far something is."""

    def update(self, what: str, done: float, total: float | None) -> None:
        """``done`` of ``total`` (None where nobody knows) parts of ``what``."""
        ...


class NoProgress:
    def update(self, what: str, done: float, total: float | None) -> None:
        pass
