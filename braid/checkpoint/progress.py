"""How long work (downloads, conversions) tells a user interface where it stands."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One task at a time: ``start``, any number of ``advance``, ``done``."""

    def start(self, total_bytes: int, what: str) -> None:
        """A task of ``total_bytes`` begins; ``what`` names it for the user. 0 bytes: the size is not known."""
        ...

    def advance(self, num_bytes: int) -> None:
        """``num_bytes`` more are done; may be called from any thread."""
        ...

    def done(self) -> None:
        """The task ended, well or not."""
        ...


class NullProgress:
    """Shows nothing."""

    def start(self, total_bytes: int, what: str) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def done(self) -> None:
        pass
