"""Traffic told client by client (ServeGen): rates and gap laws per window, and lengths as they are distributed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl

from braid.lab.fit.laws import UnitLaw
from braid.lab.readers.servegen import PMF, ServeGenProfile

WINDOW_S = 600.0


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths, and the shares of requests up to each of them."""

    values: tuple[float, ...]
    up_to: tuple[float, ...]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """From ``start_s`` a client sends at ``rate`` (1/s); gaps follow ``law``, scaled to that rate."""

    start_s: float
    rate: float
    law: UnitLaw


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths from ``start_s`` on; None where they are not known."""

    start_s: float
    input: Distribution | None
    output: Distribution | None


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One client's windows in order, idle ones left out, and its lengths in order (empty: those of all together)."""

    number: int
    windows: tuple[Window, ...]
    periods: tuple[Period, ...]


class Clients(msgspec.Struct, frozen=True, kw_only=True):
    """All clients, superposed.

    Args:
        start_s, span_s: the first window's start, and the time to the last one's end; then all begins anew.
        window_s: length of a window.
        together: lengths for clients that have none of their own.
    """

    start_s: float
    span_s: float
    window_s: float
    clients: tuple[Client, ...]
    together: Period

    @property
    def rate(self) -> float:
        """Requests per second in the long run."""
        total = sum(window.rate for client in self.clients for window in client.windows)
        return total * self.window_s / self.span_s


def clients_of(source: ServeGenProfile) -> Clients:
    """All clients that have windows; a client without lengths gets those of all together."""
    windows = source.windows.sort("client", "start_s")
    starts = windows["start_s"].unique().sort()
    steps = starts.diff().drop_nulls().to_numpy()
    window_s = float(np.median(steps)) if steps.size else WINDOW_S
    first = float(starts[0])
    return Clients(
        start_s=first,
        span_s=float(starts[-1]) - first + window_s,
        window_s=window_s,
        clients=tuple(
            Client(number=int(number), windows=_windows(rows), periods=_periods(source, int(number)))
            for (number,), rows in windows.group_by("client", maintain_order=True)
        ),
        together=Period(
            start_s=first, input=_pooled(source, "input_tokens"), output=_pooled(source, "output_tokens")
        ),
    )


def _windows(rows: pl.DataFrame) -> tuple[Window, ...]:
    columns = rows.select("start_s", "rate", "cv", "family", "shape").iter_rows()
    return tuple(
        Window(start_s=start, rate=rate, law=_law(family, shape, cv))
        for start, rate, cv, family, shape in columns
        if rate > 0
    )


def _law(family: str | None, shape: float | None, cv: float | None) -> UnitLaw:
    """As named; a Gamma law of that coefficient of variation where none is."""
    if family is not None and shape:
        return UnitLaw(family=family.lower(), shape=shape)
    return UnitLaw(family="gamma", shape=1 / cv**2) if cv else UnitLaw(family="exponential")


def _periods(source: ServeGenProfile, client: int) -> tuple[Period, ...]:
    starts = sorted({start for number, start, _ in source.lengths if number == client})
    return tuple(
        Period(
            start_s=float(start),
            input=_distribution(source.lengths.get((client, start, "input_tokens"))),
            output=_distribution(source.lengths.get((client, start, "output_tokens"))),
        )
        for start in starts
    )


def _distribution(pmf: PMF | None) -> Distribution | None:
    if pmf is None:
        return None
    up_to = np.cumsum(pmf.weights)
    return Distribution(values=tuple(pmf.values.tolist()), up_to=tuple((up_to / up_to[-1]).tolist()))


def _pooled(source: ServeGenProfile, field: str) -> Distribution | None:
    """All windows of all clients, each with the same weight."""
    found: Sequence[PMF] = [pmf for (_, _, name), pmf in source.lengths.items() if name == field]
    if not found:
        return None
    values, place = np.unique(np.concatenate([pmf.values for pmf in found]), return_inverse=True)
    weights = np.bincount(place, np.concatenate([pmf.weights for pmf in found]))
    return _distribution(PMF(values, weights / weights.sum()))
