"""Who is asking: API keys and the principals behind them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """The holder of an API key.

    Args:
        name: stands for the key in quotas, programs and metrics; never the key itself. Empty on an open server.
        salt: enters every block hash of its requests, so that no other principal can tell by timing what it has
            asked.
    """

    name: str = ""
    salt: str = ""


ANONYMOUS = Principal()
"""Everybody on a server without keys."""
