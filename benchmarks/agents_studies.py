"""What ``agents_simulated.py`` simulates: for every study a trace, a load, tiers and policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from braid.sim.clients import Clients, Hints

MACHINE, MODEL = "a100-80g", "llama-3.1-8b"
HOST_TOKENS = 900_000
"""Of the host tier: about twice what the device holds."""
NO_CLIENTS = Clients()
MAIN = ("lru", "program-fcfs", "resident-first", "pin-2s", "continuum", "braid", "oracle")
FEW = ("lru", "program-fcfs", "continuum", "braid")
PARTS = ("order", "gate", "rank", "victim")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Programs.

    Args:
        trace: ``weka``, ``lmcache`` (with prompt lengths lent from ``weka``), ``swe-bench`` or ``bfcl``.
        max_turns, max_gap_s: caps; the gaps' before they are scaled.
        gap_scale: what gaps are multiplied with.
        eta: of synthetic turn counts; None for the published deviation.
    """

    trace: str
    max_turns: int | None = None
    max_gap_s: float | None = None
    gap_scale: float = 1.0
    eta: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Args:
    programs, rate: how many start, and how many per second, by chance.
    grain, block_size: see ``braid.sim.grain``; coarse, since a study is hundreds of runs.
    """

    source: Source
    programs: int
    rate: float
    host_kv_tokens: int = 0
    grain: int = 16
    block_size: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One line of a table: a policy, with other numbers or other clients."""

    name: str
    policy: str
    settings: tuple[tuple[str, float], ...] = ()
    clients: Clients = NO_CLIENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    name: str
    words: str
    load: Load
    variants: Sequence[Variant]

    def config(self, variant: Variant) -> dict[str, Any]:
        """All that a run depends on but its seed and the code."""
        return {"machine": MACHINE, "model": MODEL, "load": asdict(self.load), "variant": asdict(variant)}


def plain(*policies: str) -> list[Variant]:
    return [Variant(name=policy, policy=policy) for policy in policies]


def _hinted(name: str, hints: Hints) -> Variant:
    return Variant(name=f"braid, {name}", policy="braid", clients=Clients(hints=hints))


def _hints() -> list[Variant]:
    """Of clients that say when they come back: the truth, about the truth, ten times off, the contrary."""
    return [
        *plain("lru", "braid"),
        _hinted("honest", Hints()),
        _hinted("noisy", Hints(noise=1.0)),
        _hinted("10 times too long", Hints(factor=10.0)),
        _hinted("10 times too short", Hints(factor=0.1)),
        _hinted("lying", Hints(pivot_s=10.0)),
    ]


def _anonymous(policy: str) -> list[Variant]:
    return [
        Variant(name=f"{policy}, {share:.0%} anonymous", policy=policy, clients=Clients(anonymous=share))
        for share in (0.25, 0.75)
    ]


WEKA = Load(source=Source(trace="weka", max_turns=40, max_gap_s=120.0), programs=60, rate=0.03)
LMCACHE = Load(source=Source(trace="lmcache"), programs=80, rate=0.1)
SWE = Load(source=Source(trace="swe-bench"), programs=100, rate=0.1)
BFCL = Load(source=Source(trace="bfcl"), programs=100, rate=0.1)
SWE_RATES = (0.02, 0.03, 0.05, 0.1)
"""From no pressure at all to more than the machine can carry."""
ETAS = (1.0, 0.9, 0.6, 0.3, 0.0, -0.1)
GAP_SCALES = (0.1, 4.0)


def _with_host(load: Load) -> Load:
    return replace(load, host_kv_tokens=HOST_TOKENS)


def _ablations() -> list[Variant]:
    without = [f"braid-without-{part}" for part in PARTS]
    return plain("lru", "braid", *without, *[f"lru-with-{part}" for part in PARTS])


def _scaled(load: Load, **changes: Any) -> Load:
    return replace(load, source=replace(load.source, **changes))


STUDIES: Sequence[Study] = (
    Study(
        name="weka",
        words="coding agents with people in the loop, saturated",
        load=WEKA,
        variants=plain(*MAIN),
    ),
    Study(name="lmcache", words="automated loops, saturated", load=LMCACHE, variants=plain(*MAIN)),
    Study(name="weka-host", words="the same with a host tier", load=_with_host(WEKA), variants=plain(*MAIN)),
    Study(
        name="lmcache-host",
        words="the same with a host tier",
        load=_with_host(LMCACHE),
        variants=plain(*MAIN),
    ),
    *(
        Study(
            name=f"swe-bench-{rate:g}",
            words=f"the published setting, {rate:g} programs/s",
            load=replace(SWE, rate=rate),
            variants=plain(*MAIN),
        )
        for rate in SWE_RATES
    ),
    Study(name="bfcl", words="web search with long results", load=BFCL, variants=plain(*MAIN)),
    *(
        Study(
            name=f"eta-{eta:g}",
            words=f"SWE-bench-like programs whose turn counts have eta {eta:g}",
            load=_scaled(SWE, eta=eta),
            variants=plain(*FEW),
        )
        for eta in ETAS
    ),
    Study(
        name="light-weka",
        words="memory for all: nothing may get worse",
        load=replace(WEKA, rate=0.001, programs=30),
        variants=plain("lru", "braid"),
    ),
    Study(
        name="light-swe-bench",
        words="memory for all: nothing may get worse",
        load=replace(SWE, rate=0.01),
        variants=plain("lru", "braid"),
    ),
    Study(name="ablation-weka", words="each part removed, and alone", load=WEKA, variants=_ablations()),
    Study(name="ablation-lmcache", words="each part removed, and alone", load=LMCACHE, variants=_ablations()),
    Study(name="hints-weka", words="clients say when they come back", load=WEKA, variants=_hints()),
    Study(
        name="anonymous-lmcache",
        words="some programs have no name",
        load=LMCACHE,
        variants=[*plain("lru", "braid"), *_anonymous("braid")],
    ),
    *(
        Study(
            name=f"gaps-{scale:g}",
            words=f"Weka's gaps times {scale:g}, after the cap",
            load=_scaled(WEKA, gap_scale=scale),
            variants=plain("lru", "continuum", "braid"),
        )
        for scale in GAP_SCALES
    ),
    Study(
        name="fine-weka",
        words="weka with half the grain and half the block, for what the coarse one distorts",
        load=replace(WEKA, grain=8, block_size=256),
        variants=plain("lru", "continuum", "braid"),
    ),
)
