"""Requests of a profile's clients, each with its own rate, gaps and lengths, laid over each other."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from braid.lab.distance import Floats
from braid.lab.fit.clients import Client, Clients, Distribution, Period
from braid.lab.fit.laws import UnitLaw, draw_unit


class ClientSource:
    """One client, window after window; its gaps run on in operational time where the rate changes."""

    def __init__(self, client: Client, everyone: Clients, rng: np.random.Generator) -> None:
        self._client, self._everyone, self._rng = client, everyone, rng
        self._periods = client.periods or (everyone.together,)
        self._starts = [period.start_s for period in self._periods]
        self._next, self._round = 0, 0
        self._wait = first_gap(client.windows[0].law, rng) if client.windows else 0.0

    def until(self, horizon: float) -> list[tuple[Floats, Floats, Floats]]:
        """Times, prompts and outputs of the windows that begin before ``horizon`` and were not given out yet."""
        found = []
        while self._client.windows:
            window = self._client.windows[self._next]
            start = window.start_s - self._everyone.start_s + self._round * self._everyone.span_s
            if start >= horizon:
                break
            times = self._arrivals(start, window.rate, window.law)
            if times.size:
                period = self._periods[max(bisect_right(self._starts, window.start_s) - 1, 0)]
                found.append((times, *self._lengths(period, times.size)))
            self._next += 1
            if self._next == len(self._client.windows):
                self._next, self._round = 0, self._round + 1
        return found

    def _arrivals(self, start: float, rate: float, law: UnitLaw) -> Floats:
        total = rate * self._everyone.window_s
        events = np.array([self._wait])
        while events[-1] < total:
            num = int((total - events[-1]) * 1.1) + 16
            events = np.concatenate([events, events[-1] + np.cumsum(draw_unit(law, num, self._rng))])
        stop = int(np.searchsorted(events, total))
        self._wait = float(events[stop] - total)
        return np.asarray(start + events[:stop] / rate)

    def _lengths(self, period: Period, num: int) -> tuple[Floats, Floats]:
        everyone = self._everyone.together
        inputs = _draw(period.input or everyone.input, num, self._rng)
        outputs = _draw(period.output or everyone.output, num, self._rng)
        return inputs, np.maximum(outputs, 1)


def first_gap(law: UnitLaw, rng: np.random.Generator) -> float:
    """From any time to the first arrival: an even part of a gap chosen by its length."""
    if law.family == "gamma":
        whole = rng.standard_gamma(law.shape + 1) / law.shape
    elif law.family == "weibull":
        inverse = 1 / law.shape
        whole = rng.standard_gamma(1 + inverse) ** inverse / special.gamma(1 + inverse)
    else:
        whole = rng.standard_gamma(2.0)
    return float(rng.random() * whole)


def _draw(source: Distribution | None, num: int, rng: np.random.Generator) -> Floats:
    if source is None:
        return np.full(num, np.nan)
    place = np.minimum(np.searchsorted(source.up_to, rng.random(num), "right"), len(source.values) - 1)
    return np.asarray(np.rint(np.array(source.values)[place]))


class Crowd:
    """All clients, in so many independent copies, each request kept with a chance."""

    def __init__(self, clients: Clients, copies: int, keep: float, seed: np.random.SeedSequence) -> None:
        *children, thin = seed.spawn(copies * len(clients.clients) + 1)
        everyone = clients.clients * copies
        self._sources = [
            ClientSource(client, clients, np.random.default_rng(child))
            for client, child in zip(everyone, children, strict=True)
        ]
        self._keep, self._rng = keep, np.random.default_rng(thin)
        self._held: list[Floats] = [np.empty(0)] * 3

    def until(self, horizon: float, last: bool = False) -> pl.DataFrame:
        """Requests before ``horizon`` that were not given out yet, in order of time."""
        found = [tuple(self._held), *(part for source in self._sources for part in source.until(horizon))]
        t, inputs, outputs = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(t, kind="stable")
        stop = int(np.searchsorted(t[order], horizon))
        self._held = [column[order[stop:]] for column in (t, inputs, outputs)]
        now = order[:stop]
        now = now if self._keep >= 1 else now[self._rng.random(now.size) < self._keep]
        return pl.DataFrame({"t_s": t[now], "in_tok": _whole(inputs[now]), "out_tok": _whole(outputs[now])})


def _whole(values: NDArray[np.float64]) -> pl.Series:
    return pl.Series(values, nan_to_null=True).cast(pl.Int64)
