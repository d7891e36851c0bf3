"""Who runs earlier."""

from __future__ import annotations

from typing import Protocol

from braid.core.request import Request

OrderKey = tuple[float, ...]
"""Smaller runs earlier. Unique per request, so that nothing else is ever compared."""


class Order(Protocol):
    """Gives each request its place in the queue, once, when it is added."""

    def key(self, request: Request, sequence: int) -> OrderKey:
        """``sequence`` counts the requests added so far and breaks ties."""
        ...


class FirstCome:
    """By priority, then arrival, then the order of adding."""

    def key(self, request: Request, sequence: int) -> OrderKey:
        return (request.priority, request.arrival_time, sequence)
