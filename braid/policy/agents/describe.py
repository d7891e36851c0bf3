"""What policies have learnt, as numbers for whoever watches: those that have nothing to tell need not say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Describes(Protocol):
    """A policy, or what it learns with, that tells its state."""

    def describe(self) -> Mapping[str, float]:
        """Numbers by name: a fixed set of names, such as ``gap_p50_seconds_tool``; none holds a client's text."""
        ...


def described(*parts: object) -> dict[str, float]:
    """The state of all ``parts`` that tell theirs."""
    state: dict[str, float] = {}
    for part in parts:
        if isinstance(part, Describes):
            state |= part.describe()
    return state
