"""A model with a part of its experts in fast memory, on a named machine: one run, and the parts beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import STATIC
from braid.sim.experts.machines import LayerCosts
from braid.sim.experts.routes import Routes
from braid.sim.experts.steps import Step, recorded
from braid.sim.experts.synthetic import HABITS, USUAL, Synthetic, popular
from braid.sim.experts.timeline import Parts, Sums, Timeline
from braid.sim.sizes import ModelSizes

PROFILE_TOKENS = 96
"""Decodes of another text that a placement by frequency is learnt from."""
WARM_STEPS = 16
"""Decodes that are not counted."""
BASELINE = Parts(schedule=False, prefetch="off", policy=STATIC, scope="layer")
"""A fixed set by frequency on the GPU, all else on the CPU: how KTransformers places experts."""
VARIANTS: Mapping[str, Parts] = MappingProxyType(
    {
        "baseline": BASELINE,
        "+ scheduling": Parts(schedule=True, prefetch="off", policy=STATIC, scope="layer"),
        "+ prefetch": Parts(schedule=False, prefetch="on", policy=STATIC, scope="layer"),
        "+ caching": Parts(schedule=False, prefetch="off", policy="mrs"),
        "all": Parts(schedule=True, prefetch="on", policy="mrs"),
        "all - scheduling": Parts(schedule=False, prefetch="on", policy="mrs"),
        "all - prefetch": Parts(schedule=True, prefetch="off", policy="mrs"),
        "all - caching": Parts(schedule=True, prefetch="on", policy=STATIC, scope="layer"),
    }
)
PAPER: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "prefill": {"+ scheduling": 1.26, "+ prefetch": 1.06, "all": 1.31},
        "decode": {"+ scheduling": 1.46, "+ prefetch": 1.15, "+ caching": 1.38, "all": 1.86},
    }
)
"""Times faster than the baseline: Qwen2-57B-A14B, 25 % (HybriMoE's ablation, as summaries of it say)."""
PAPER_MEAN: Mapping[str, float] = MappingProxyType({"prefill": 1.33, "decode": 1.70})
"""Over its models and fractions (its abstract)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is computed: steps that are counted, after others that are not, and who is held at first.

    Args:
        words: where the routing comes from.
        profile: what a placement by frequency is learnt from.
    """

    shape: ExpertShape
    prompts: Sequence[Step]
    warm: Sequence[Step]
    decodes: Sequence[Step]
    profile: Sequence[Step]
    words: str


def synthetic_load(model: ModelSizes, *, prompt: int, decodes: int, seed: int = 0) -> Load:
    """One prompt and what follows it, of routing that nobody recorded."""
    shape = ExpertShape(model.moe_layers, model.num_experts, model.top_k)
    habits = HABITS.get(model.name, USUAL)
    text = Synthetic(shape, habits, seed=seed, text=0)
    profile = list(Synthetic(shape, habits, seed=seed, text=1).decodes(PROFILE_TOKENS))
    warm = list(text.decodes(WARM_STEPS))
    prompts = [text.prompt(prompt)] if prompt else []
    return Load(
        shape=shape,
        prompts=prompts,
        warm=warm,
        decodes=list(text.decodes(decodes)),
        profile=profile,
        words=f"synthetic routing, seed {seed}: {habits}",
    )


def recorded_load(model: ModelSizes, routes: Routes, name: str) -> Load:
    """A recording, from its beginning. Its own prompts say who is popular.

    Raises:
        InvalidParameterError: it is another model's.
    """
    wanted = (model.moe_layers, model.num_experts)
    if (routes.shape.layers, routes.shape.per_layer) != wanted:
        raise InvalidParameterError(
            f"{name} has {routes.shape.layers} layers of {routes.shape.per_layer} experts, "
            f"but {model.name} has {wanted[0]} of {wanted[1]}",
            param="trace",
        )
    steps = recorded(routes)
    prompts = [step for step in steps if step.is_prefill]
    return Load(
        shape=routes.shape,
        prompts=prompts,
        warm=(),
        decodes=[step for step in steps if not step.is_prefill],
        profile=prompts,
        words=f"recorded routing: {name}",
    )


def simulate(load: Load, costs: LayerCosts, fraction: float, parts: Parts, *, seed: int = 0) -> Timeline:
    """
    Raises:
        InvalidParameterError: the fraction is not between 0 and 1, or leaves less than a slot.
    """
    if not 0 < fraction <= 1 or int(load.shape.total * fraction) < 1:
        raise InvalidParameterError(
            f"fraction must be above 0 and at most 1, got {fraction}", param="fraction"
        )
    num_slots = int(load.shape.total * fraction)
    placement = popular(load.profile, load.shape, num_slots)
    timeline = Timeline(load.shape, costs, num_slots, parts, placement, seed=seed)
    timeline.run(load.warm)
    timeline.sums = {"prefill": Sums(), "decode": Sums()}
    timeline.run(load.prompts)
    timeline.run(load.decodes)
    return timeline


def summary(timeline: Timeline, costs: LayerCosts) -> dict[str, Any]:
    """Seconds per prompt and per decode, and what became of experts."""
    return {phase: _numbers(sums, costs) for phase, sums in timeline.sums.items() if sums.steps} | {
        "prefetcher": timeline.prefetcher.describe()
    }


def _numbers(sums: Sums, costs: LayerCosts) -> dict[str, Any]:
    transfers = sums.fetched + sums.early
    return {
        "steps": sums.steps,
        "rows": sums.rows,
        "seconds_per_step": sums.seconds / sums.steps,
        "hit_rate": sums.hits / max(1, sums.wanted),
        "slow_share": sums.slow / max(1, sums.wanted),
        "fetched_share": sums.fetched / max(1, sums.wanted),
        "early_transfers": sums.early,
        "link_bytes_per_step": transfers * costs.expert_bytes / sums.steps,
        "link_busy_share": transfers * costs.times.link_s / sums.seconds if sums.seconds else 0.0,
        "fast_busy_share": sums.fast_busy_s / sums.seconds if sums.seconds else 0.0,
        "slow_busy_share": sums.slow_busy_s / sums.seconds if sums.seconds else 0.0,
    }
