"""Rotary settings in their old (``rope_theta``, ``rope_scaling``) and new (``rope_parameters``) spellings."""

from __future__ import annotations

import math
from collections.abc import Mapping

from braid.core.errors import CheckpointError
from braid.models.config import Fields, RopeConfig

KINDS = {kind: kind for kind in ("default", "linear", "llama3", "yarn")}


def rope_fields(config: Fields) -> Fields:
    """The section that holds the scaling; empty where there is none."""
    empty: Mapping[str, object] = {}
    return config.section("rope_parameters") or config.section("rope_scaling") or Fields(empty, config.where)


def parse_rope(config: Fields, dim: int, *, theta: float = 10_000.0) -> RopeConfig:
    """The rotary embedding of a model that has only one; ``theta`` is the family's default."""
    return parse_section(rope_fields(config), config, dim, theta=config.number("rope_theta", theta))


def parse_section(rope: Fields, config: Fields, dim: int, *, theta: float) -> RopeConfig:
    """One rotary section; ``dim`` is the head's size before a partial rotation."""
    name = "rope_type" if rope.config.get("rope_type") is not None else "type"
    kind = rope.choice(name, KINDS, "default")
    partial = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim, theta = int(dim * partial), rope.number("rope_theta", theta)
    if dim < 2 or dim % 2:
        raise CheckpointError(f"the rotated part of a head must be even and at least 2, got {dim}")
    if kind == "default":
        return RopeConfig(dim, theta)
    return _scaled(kind, rope, config, dim, theta)


def _scaled(kind: str, rope: Fields, config: Fields, dim: int, theta: float) -> RopeConfig:
    max_len = config.size("max_position_embeddings")
    original = rope.size("original_max_position_embeddings", max_len)
    original = config.size("original_max_position_embeddings", original)
    if kind == "linear":
        return RopeConfig(dim, theta, kind, rope.number("factor"))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise CheckpointError(f"low_freq_factor {low} must be below high_freq_factor {high}")
        return RopeConfig(dim, theta, kind, rope.number("factor"), original, low, high)
    factor = rope.number("factor", max_len / original)
    return RopeConfig(
        dim,
        theta,
        kind,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_attention(rope, factor),
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature (arXiv:2309.00071, 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_attention(rope: Fields, factor: float) -> float:
    given = rope.optional("attention_factor")
    if given is not None:
        return given
    mscale, all_dim = rope.config.get("mscale"), rope.config.get("mscale_all_dim")
    if mscale and all_dim:
        return yarn_mscale(factor, rope.number("mscale")) / yarn_mscale(factor, rope.number("mscale_all_dim"))
    return yarn_mscale(factor)
