"""``braid sim experts``: recorded routing under caches of experts, or whole steps in virtual time.

What is replayed and shown is in ``experts_replay``; this module has the options. Whatever else the verb simulates has
flags of its own beside ``ReplayFlags``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from braid.cli.sim.experts_timeline import TimelineFlags, run_timeline
from braid.cli.trace.load import JsonOut
from braid.core.errors import InvalidParameterError

REPLAY = Group("Replay", sort_key=0)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayFlags:
    """Which routing, which caches, how large."""

    trace: Annotated[
        Path | None,
        Parameter(
            group=REPLAY,
            help="Recorded routing: CSV with phase, step, layer, slot, expert, weight.",
            show_default="none; with --timeline synthetic routing",
        ),
    ] = None
    policy: Annotated[
        str,
        Parameter(
            group=REPLAY,
            metavar="NAME[,NAME...]",
            help="Caches: lru, lfu, lfru, ewma, mrs, mrs-paper, static, belady.",
        ),
    ] = "lru,mrs"
    slots: Annotated[
        int | None,
        Parameter(
            group=REPLAY,
            help="Slots per layer; with --global their mean, so that all layers share N times the layers.",
            show_default="none",
        ),
    ] = None
    fraction: Annotated[
        float | None,
        Parameter(group=REPLAY, help="Instead: slots as a share of all experts.", show_default="none"),
    ] = None
    is_global: Annotated[
        bool,
        Parameter(
            name="--global",
            negative="--per-layer",
            group=REPLAY,
            help="All layers share the slots, or each has an equal part.",
        ),
    ] = True
    rules: Annotated[
        Literal["every-miss", "served"],
        Parameter(
            group=REPLAY,
            help="Admit every miss, without floors, as published comparisons count; or as a server does: with a floor "
            "per layer, and misses that are not worth their victim bypass the cache.",
        ),
    ] = "every-miss"

    @property
    def path(self) -> Path:
        """
        Raises:
            InvalidParameterError: nobody said what to replay.
        """
        if self.trace is None:
            raise InvalidParameterError("--trace says which recorded routing to replay", param="trace")
        return self.trace

    @property
    def scope(self) -> str:
        return "global" if self.is_global else "layer"


def experts(
    *,
    replay: ReplayFlags = ReplayFlags(),
    timeline: TimelineFlags = TimelineFlags(),  # noqa: B008
    json: JsonOut = None,
) -> int:
    """Replay recorded routing of a mixture of experts, and say how often its experts would have been in fast memory.

    Caches start empty and run through the prompt; hits are counted in decode. Belady's, which knows the future, bounds
    every other that admits every miss.

    With --timeline whole steps are simulated instead, on a named machine: who computes which expert, what is fetched
    early, and how long that takes beside a fixed set of experts in fast memory (one --policy; a quarter of the experts
    unless --slots or --fraction says otherwise).
    """
    if timeline.timeline:
        run_timeline(timeline, replay, json)
        return 0
    timeline.check_unused()
    from braid.cli.sim.experts_replay import run

    run(replay, json)
    return 0
