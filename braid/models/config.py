"""A model's description, normalised from the many spellings of ``config.json``. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from braid.core.errors import CheckpointError


class RopeConfig(NamedTuple):
    """One rotary embedding; the fields are those of `braid.layers.rotary.Rotation`."""

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """Routing and sizes of expert layers.

    Args:
        layers: per layer, whether it has experts.
        scoring: "softmax" or "sigmoid".
        normalise: chosen weights are divided by their sum.
        scaling: chosen weights are multiplied by it.
        num_groups, top_groups: experts are chosen only from the best ``top_groups`` groups; 1 and 1 for no groups.
        bias: a correction bias takes part in the choice but not in the weights.
        shared_size: width of the experts every token uses, 0 for none; ``shared_gate``: scaled by a learnt sigmoid.
    """

    layers: tuple[bool, ...]
    num_experts: int
    top_k: int
    size: int
    scoring: str = "softmax"
    normalise: bool = False
    scaling: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    bias: bool = False
    shared_size: int = 0
    shared_gate: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MLAConfig:
    """Multi-head latent attention (arXiv:2405.04434): ranks and head sizes. ``q_rank`` 0: plain queries."""

    q_rank: int
    kv_rank: int
    nope_size: int
    rope_size: int
    v_size: int
    interleaved: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything the layers and the sizes depend on.

    Args:
        windows: per layer, the sliding window or None.
        ropes: the different rotary embeddings; ``layer_ropes``: which one each layer uses.
        qk_norm: "none", "head" (one norm per head) or "all" (one norm over all heads).
    """

    architecture: str
    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    norm_eps: float
    max_model_len: int
    tied: bool
    attention_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[RopeConfig, ...]
    layer_ropes: tuple[int, ...]
    act: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    qkv_clip: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    moe: MoEConfig | None = None
    mla: MLAConfig | None = None


_REQUIRED = object()


class Fields:
    """Checked reading of a config dict; absent and null are the same."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config, self.where = config, where

    def _get(self, name: str, default: Any, ok: Any, kind: str) -> Any:
        value = self.config.get(name)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.where} lacks {name!r} ({kind})")
            return default
        if not ok(value):
            raise CheckpointError(f"{name!r} in {self.where} must be {kind}, got {value!r}")
        return value

    def size(self, name: str, default: Any = _REQUIRED) -> int:
        def ok(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0

        return self._get(name, default, ok, "a positive integer")  # type: ignore[no-any-return]

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        def ok(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0

        return self._get(name, default, ok, "an integer >= 0")  # type: ignore[no-any-return]

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        def ok(value: Any) -> bool:
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            return real and math.isfinite(value) and value > 0

        value = self._get(name, default, ok, "a positive number")
        return float(value)

    def optional(self, name: str) -> float | None:
        return None if self.config.get(name) is None else self.number(name)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        return self._get(name, default, lambda v: isinstance(v, bool), "true or false")  # type: ignore[no-any-return]

    def choice(self, name: str, choices: Mapping[str, str], default: Any = _REQUIRED) -> str:
        """The value that ``choices`` gives to the spelling found."""
        kind = "one of " + ", ".join(sorted(choices))
        found = self._get(name, default, lambda v: isinstance(v, str) and v in choices, kind)
        return choices[found]

    def names(self, name: str, length: int) -> tuple[str, ...] | None:
        """A list of one string per layer."""

        def ok(value: Any) -> bool:
            return isinstance(value, list) and len(value) == length and all(isinstance(v, str) for v in value)

        found = self._get(name, None, ok, f"a list of {length} strings")
        return None if found is None else tuple(found)

    def section(self, name: str) -> Fields | None:
        found = self._get(name, None, lambda v: isinstance(v, Mapping), "an object")
        return None if found is None else Fields(found, f"{name} of {self.where}")
