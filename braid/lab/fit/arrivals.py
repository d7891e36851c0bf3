"""Competing models of arrivals, chosen on held-out time: by the index of dispersion, and by KS of gaps beside it.

A good KS on gaps proves little (plain exponential gaps fit Azure's conversations to 0.03 and miss the index at 60 s
by a factor of 16), so what makes counts vary comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import msgspec
import numpy as np

from braid.lab.distance import Floats, ks, usable_windows
from braid.lab.fit.hawkes import fit_hawkes
from braid.lab.fit.laws import POISSON, Law, UnitLaw, fit_law, tabulate
from braid.lab.fit.mmpp import fit_mmpp
from braid.lab.fit.observed import Observed, Spans, alternate, dequantise
from braid.lab.fit.processes import Constant, Process, arrivals_until
from braid.lab.fit.rates import WINDOW_S, WindowRow, fit_cox, fit_onoff, fit_windowed, window_table
from braid.lab.progress import NoProgress, Progress

SIMULATIONS = 16
BASELINES = ("poisson", "gamma")
KS_WEIGHT = 4.0


class ArrivalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A rate process, the law of gaps within it (mean 1 in operational time), and its likelihood where it has one."""

    name: str
    process: Process
    law: UnitLaw = POISSON
    bic: float | None = None
    intervals: dict[str, tuple[float, float]] = {}


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate, fitted to one part of the time, meets the other; the mean of both ways round.

    ``idc`` are ratios generated to held out per window length (s), the geometric mean of both ways (the held-out
    part's own luck cancels); ``idc_error`` is their mean absolute logarithm.
    """

    name: str
    idc: dict[str, float]
    idc_error: float
    ks: float
    chosen: bool = False


class FittedArrivals(msgspec.Struct, frozen=True, kw_only=True):
    chosen: ArrivalModel
    baselines: tuple[ArrivalModel, ...]
    scores: tuple[Score, ...]
    gap_laws: tuple[Law, ...]
    windows: tuple[WindowRow, ...]
    rate: float
    num: int


Fit = Callable[[Observed, Observed], ArrivalModel | None]
"""From arrivals as recorded, and the same moved off a coarse clock's grid, to a model; None where it does not apply."""


def _single(family: str) -> Fit:
    def fit(data: Observed, _: Observed) -> ArrivalModel:
        law = fit_law(data.gaps(), family, data.quantum_s)
        name = "poisson" if family == "exponential" else family
        return ArrivalModel(
            name=name,
            process=Constant(rate=data.rate),
            law=UnitLaw(family=family, shape=law.shape),
            bic=law.bic,
            intervals={"rate": _inverse(law.mean_interval), "shape": law.shape_interval},
        )

    return fit


def _inverse(interval: tuple[float, float]) -> tuple[float, float]:
    return 1 / interval[1], 1 / interval[0]


def _windowed(name: str, family: str, window: Callable[[Observed], float]) -> Fit:
    def fit(_: Observed, data: Observed) -> ArrivalModel | None:
        window_s = min(window(data), min(stop - start for start, stop in data.spans))
        if data.counts(window_s).size < 2:
            return None
        found = fit_windowed(data, window_s)
        law = fit_law(found.gaps, family)
        return ArrivalModel(name=name, process=found.process, law=UnitLaw(family=family, shape=law.shape))

    return fit


def _onoff(multiple: float) -> Fit:
    """Silences from so many mean gaps on; all busy phases share one rate and the gaps seen in them."""

    def fit(_: Observed, data: Observed) -> ArrivalModel | None:
        found = fit_onoff(data, multiple / data.rate, free_rate=False)
        if found is None:
            return None
        return ArrivalModel(name=f"onoff-{multiple:g}", process=found.process, law=tabulate(found.gaps))

    return fit


def _cox(_: Observed, data: Observed) -> ArrivalModel | None:
    found = fit_cox(data)
    return ArrivalModel(name="cox", process=found.process) if found else None


def _mmpp(states: int) -> Fit:
    def fit(data: Observed, _: Observed) -> ArrivalModel | None:
        if data.times.size < 100:
            return None
        found = fit_mmpp(data, states)
        bic = states * states * float(np.log(found.num)) - 2 * found.log_likelihood
        return ArrivalModel(name=f"mmpp{states}", process=found.process, bic=bic, intervals=found.intervals)

    return fit


def _hawkes(_: Observed, data: Observed) -> ArrivalModel | None:
    if data.times.size < 100:
        return None
    found = fit_hawkes(data)
    if found.process.memory_s > data.covered_s / 20:
        return None  # its past reaches too far to be told from drift
    bic = 3 * float(np.log(found.num)) - 2 * found.log_likelihood
    return ArrivalModel(name="hawkes", process=found.process, bic=bic, intervals=found.intervals)


CANDIDATES: Mapping[str, Fit] = {
    "poisson": _single("exponential"),
    "gamma": _single("gamma"),
    "weibull": _single("weibull"),
    "lognormal": _single("lognormal"),
    "windowed-gamma": _windowed("windowed-gamma", "gamma", lambda _: WINDOW_S),
    "windowed-weibull": _windowed("windowed-weibull", "weibull", lambda _: WINDOW_S),
    "windowed-lognormal": _windowed("windowed-lognormal", "lognormal", lambda _: WINDOW_S),
    "drift-gamma": _windowed("drift-gamma", "gamma", lambda data: 100 / data.rate),
    "drift-weibull": _windowed("drift-weibull", "weibull", lambda data: 100 / data.rate),
    "cox": _cox,
    "onoff-2": _onoff(2),
    "onoff-4": _onoff(4),
    "onoff-8": _onoff(8),
    "onoff-16": _onoff(16),
    "mmpp2": _mmpp(2),
    "mmpp3": _mmpp(3),
    "hawkes": _hawkes,
}


def _off_grid(data: Observed) -> Observed:
    if not data.quantum_s:
        return data
    rng = np.random.default_rng(0)
    return Observed(np.sort(dequantise(data.times, data.quantum_s, rng)), data.spans, 0.0)


def fit_one(name: str, data: Observed) -> ArrivalModel | None:
    """One candidate of ``CANDIDATES``; None where the data is too little for it."""
    return CANDIDATES[name](data, _off_grid(data))


def simulated(
    model: ArrivalModel, data: Observed, seed: int, simulations: int = SIMULATIONS
) -> Iterator[Observed]:
    """The model's arrivals over the same spans and on the same clock, once per simulation."""
    origin, end = data.spans[0][0], data.spans[-1][1]
    for child in np.random.SeedSequence(seed).spawn(simulations):
        times = origin + arrivals_until(model.process, model.law, np.random.default_rng(child), end - origin)
        if data.quantum_s:
            times = np.floor(times / data.quantum_s) * data.quantum_s
        yield Observed(times, ((origin, end),), data.quantum_s).within(data.spans)


def score(
    model: ArrivalModel,
    held_out: Observed,
    windows: list[float],
    seed: int = 0,
    simulations: int = SIMULATIONS,
) -> Score:
    """Median over simulations of index ratios, and of KS of gaps."""
    ratios, distances = [], []
    seen = np.array([held_out.idc(w) for w in windows])
    gaps = held_out.gaps()
    for run in simulated(model, held_out, seed, simulations):
        ratios.append(np.array([run.idc(w) for w in windows]) / seen)
        distances.append(ks(run.gaps(), gaps))
    ratio = np.nanmedian(np.array(ratios), axis=0) if windows else np.empty(0)
    idc = {f"{w:g}": float(r) for w, r in zip(windows, ratio, strict=True)}
    return Score(name=model.name, idc=idc, idc_error=_error(ratio), ks=float(np.nanmedian(distances)))


def _both_ways(name: str, parts: tuple[Observed, Observed], windows: list[float]) -> Score | None:
    found = []
    for fitted, held_out in (parts, parts[::-1]):
        model = fit_one(name, fitted)
        if model is None:
            return None
        found.append(score(model, held_out, windows))
    a, b = found
    idc = {w: float(np.sqrt(a.idc[w] * b.idc[w])) for w in a.idc}
    return Score(name=name, idc=idc, idc_error=_error(np.array(list(idc.values()))), ks=(a.ks + b.ks) / 2)


def _error(ratios: Floats) -> float:
    return float(np.abs(np.log(np.maximum(ratios, 1e-6))).mean()) if ratios.size else 0.0


def _best(scores: list[Score]) -> Score:
    """The least index error, with KS of gaps beside it: an index off by 10 % weighs as much as 0.025 of KS, so that a
    model whose counts vary rightly but whose gaps are another law's does not win by a hair."""
    return min(scores, key=lambda s: s.idc_error + KS_WEIGHT * s.ks)


def _inner_block(spans: Spans) -> float:
    """Blocks for choosing: as the spans themselves repeat, else a twentieth of the time (a minute at least)."""
    if len(spans) > 3:
        return spans[1][0] - spans[0][0]
    return max(60.0, (spans[-1][1] - spans[0][0]) / 20)


def fit_arrivals(
    data: Observed, names: tuple[str, ...] = tuple(CANDIDATES), progress: Progress | None = None
) -> FittedArrivals:
    """Fit all candidates, choose on held-out time, and refit the chosen one to all of the time.

    See ``_best`` for the rule.

    Raises:
        ValueError: too few arrivals for the simplest model.
    """
    progress = progress or NoProgress()
    block = _inner_block(data.spans)
    parts = (data.within(alternate(data.spans, block, 0)), data.within(alternate(data.spans, block, 1)))
    longest = max(stop - start for start, stop in data.spans)
    windows = [w for w in usable_windows(data.quantum_s, data.covered_s) if w <= min(block, longest)]
    scores: list[Score] = []
    enough = min(part.times.size for part in parts) >= 30
    for i, name in enumerate(names if enough else names[:1]):
        progress.update("fitting arrivals", i, len(names))
        found = _both_ways(name, parts, windows) if enough else _unscored(name)
        if found is not None:
            scores.append(found)
    best = _best(scores)
    chosen = fit_one(best.name, data)
    assert chosen is not None  # it was fitted to either half
    law_names = ("exponential", "gamma", "weibull", "lognormal")
    baselines = [fit_one(name, data) for name in BASELINES]
    return FittedArrivals(
        chosen=_with_intervals(chosen, data),
        baselines=tuple(model for model in baselines if model is not None),
        scores=tuple(msgspec.structs.replace(s, chosen=s.name == best.name) for s in scores),
        gap_laws=tuple(fit_law(data.gaps(), family, data.quantum_s) for family in law_names),
        windows=window_table(data),
        rate=data.rate,
        num=int(data.times.size),
    )


def _unscored(name: str) -> Score:
    return Score(name=name, idc={}, idc_error=0.0, ks=0.0)


def _numbers(process: Process) -> dict[str, float]:
    """The fitted numeric fields of a process (window lengths and time scales are chosen), tuples spread out."""
    found: dict[str, float] = {}
    for key, value in msgspec.structs.asdict(process).items():
        if key.endswith("_s"):
            continue
        if isinstance(value, float):
            found[key] = value
        elif isinstance(value, tuple) and value and isinstance(value[0], float):
            found.update({f"{key}_{i}": float(v) for i, v in enumerate(value)})
    return found


def _with_intervals(model: ArrivalModel, data: Observed, blocks: int = 10) -> ArrivalModel:
    """Jackknife intervals (one tenth of the time left out in turn) where the likelihood gives none."""
    if model.intervals:
        return model
    edges = np.linspace(data.spans[0][0], data.spans[-1][1], blocks + 1)
    seen: list[dict[str, float]] = []
    for low, high in pairwise(edges):
        spans = tuple(
            piece
            for a, b in data.spans
            for piece in ((a, min(b, float(low))), (max(a, float(high)), b))
            if piece[1] > piece[0]
        )
        part = _left_out(model.name, data.within(spans))
        if part is not None:
            seen.append(_numbers(part))
    full = _numbers(model.process)
    intervals = {
        key: _jackknife(value, np.array([each[key] for each in seen]), 0.0 if _positive(key) else -np.inf)
        for key, value in full.items()
        if len(seen) > 2 and all(key in each for each in seen)
    }
    return msgspec.structs.replace(model, intervals=intervals)


def _left_out(name: str, data: Observed) -> Process | None:
    """A refit whose spread counts, not its place: simulations that only move it are left out."""
    if name == "cox":
        found = fit_cox(_off_grid(data), corrected=False)
        return found.process if found else None
    part = fit_one(name, data)
    return part.process if part else None


def _positive(key: str) -> bool:
    return key == "rate" or key.startswith("variances") or key.endswith("sd")


def _jackknife(value: float, left_out: Floats, least: float) -> tuple[float, float]:
    num = left_out.size
    half = 1.96 * float(np.sqrt((num - 1) / num * ((left_out - left_out.mean()) ** 2).sum()))
    return max(value - half, least), value + half
