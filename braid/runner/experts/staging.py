"""A few rows beside the slots: experts that are computed with and not kept.

Whoever computes a layer takes rows here for what it bypasses, and gives each back when it is computed. One that holds
none may take the last, one that holds some leaves it to others, and nobody who holds any waits for more: so several
can compute at the same time with as little as one row.
"""

from __future__ import annotations

from dataclasses import dataclass

from braid.runner.experts.reader import Cause, Read


@dataclass(slots=True, eq=False)
class Staged:
    """An expert in a row; ``users`` are computing with it or about to."""

    read: Read
    users: int = 0


class Staging:
    """Rows ``[0, num_rows)`` of an arena. Used under its store's lock."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows))
        self._staged: dict[int, Staged] = {}

    def join(self, expert: int) -> Read | None:
        """Use a row that another one took for the same expert, if there is one that did not fail."""
        staged = self._staged.get(expert)
        if staged is None or staged.read.error is not None:
            return None
        staged.users += 1
        return staged.read

    def claim(self, expert: int, cause: Cause, held: int) -> Read | None:
        """A read into a free row, to be submitted; None if there is none for one who holds ``held`` already."""
        if len(self._free) <= (held > 0) or expert in self._staged:
            return None
        read = Read(expert, self._free.pop(), cause)
        self._staged[expert] = Staged(read, 1)
        return read

    def leave(self, expert: int) -> None:
        """It is computed, or no longer wanted."""
        staged = self._staged[expert]
        staged.users -= 1
        self._let_go(staged)

    def ended(self, read: Read) -> None:
        """The read is settled."""
        staged = self._staged.get(read.expert)
        if staged is not None and staged.read is read:
            self._let_go(staged)

    def is_alone(self, expert: int) -> bool:
        """Only one uses its row."""
        return self._staged[expert].users == 1

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: a row is lost, or has two owners.
        """
        rows = sorted([*self._free, *(staged.read.row for staged in self._staged.values())])
        assert rows == list(range(self.num_rows)), "a staging row is lost, or has two owners"
        assert all(staged.users > 0 or not staged.read.is_settled for staged in self._staged.values()), (
            "a staging row is kept for no reason"
        )

    @property
    def num_used(self) -> int:
        return len(self._staged)

    def _let_go(self, staged: Staged) -> None:
        if staged.users == 0 and staged.read.is_settled:
            del self._staged[staged.read.expert]
            self._free.append(staged.read.row)
