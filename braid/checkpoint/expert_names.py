"""Which tensors of a checkpoint are routed experts, and what experts they make up. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from braid.checkpoint.open import Checkpoint
from braid.checkpoint.tensors import TensorInfo
from braid.core.errors import CheckpointError
from braid.core.experts import ExpertShape

_EXPERT = re.compile(
    r"(?:model\.)?layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\."
    r"(gate_proj|up_proj|down_proj|w1|w3|w2)\.weight"
)
_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\..+")
_PART = {"gate_proj": 0, "up_proj": 1, "down_proj": 2, "w1": 0, "w3": 1, "w2": 2}
_SPELLED = ("gate", "up", "down")
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Expert(NamedTuple):
    """The tensors of one expert: gate and up [F, D], down [D, F]."""

    gate: TensorInfo
    up: TensorInfo
    down: TensorInfo

    @property
    def num_bytes(self) -> int:
        """Bytes as stored in the checkpoint."""
        return sum(info.num_bytes for info in self)


class ExpertTensors(NamedTuple):
    """All routed experts of a checkpoint, by id."""

    shape: ExpertShape
    hidden: int
    size: int
    experts: tuple[Expert, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes as stored in the checkpoint."""
        return sum(expert.num_bytes for expert in self.experts)


def is_expert(name: str) -> bool:
    """Whether a tensor (Hugging Face name) is a part of a routed expert."""
    return _EXPERT.fullmatch(name) is not None


def is_beyond(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to a layer after the model's last: DeepSeek-V3 stores such, which predict further."""
    layer = _LAYER.fullmatch(name)
    count = config.get("num_hidden_layers")
    return layer is not None and type(count) is int and int(layer[1]) >= count


def find_experts(checkpoint: Checkpoint) -> ExpertTensors:
    """The routed experts of a checkpoint.

    Raises:
        CheckpointError: it has none, or some are missing, or of unlike shapes; the text names the tensor.
    """
    root, config = checkpoint.source.root, checkpoint.config
    parts: dict[tuple[int, int], dict[int, TensorInfo]] = {}
    for name, info in checkpoint.tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is not None and not is_beyond(name, config):
            parts.setdefault((int(match[1]), int(match[2])), {})[_PART[match[3]]] = info
    if not parts:
        raise _without(checkpoint)
    layers = sorted({layer for layer, _ in parts})
    per_layer = _stated_count(config) or 1 + max(index for _, index in parts)
    top_k = config.get("num_experts_per_tok")
    if type(top_k) is not int or not 1 <= top_k <= per_layer:
        raise CheckpointError(
            f"{root}: num_experts_per_tok is {str(top_k)[:20]}, must be from 1 to {per_layer}, the number of experts"
        )
    beyond = max(index for _, index in parts) + 1
    if beyond > per_layer:
        raise CheckpointError(f"{root}: layers hold {beyond} experts, config.json says {per_layer}")
    experts = tuple(
        _whole(root.name, layer, index, parts.get((layer, index), {}))
        for layer in layers
        for index in range(per_layer)
    )
    size, hidden = _alike(experts)
    return ExpertTensors(ExpertShape(len(layers), per_layer, top_k), hidden, size, experts)


def _without(checkpoint: Checkpoint) -> CheckpointError:
    if checkpoint.experts is not None:
        return CheckpointError(
            f"{checkpoint.source.name}: is converted already: its experts are in {checkpoint.experts.path} as "
            f"{checkpoint.experts.layout.format}; convert the checkpoint that it was made from"
        )
    named = checkpoint.config.get("architectures") or [checkpoint.config.get("model_type")]
    return CheckpointError(
        f"{checkpoint.source.name}: has no routed experts ({str(named[0])[:60]} is not a mixture of experts)"
    )


def _stated_count(config: Mapping[str, Any]) -> int | None:
    counts = (config.get(name) for name in _COUNTS)
    return next((count for count in counts if type(count) is int and count > 0), None)


def _whole(name: str, layer: int, index: int, parts: Mapping[int, TensorInfo]) -> Expert:
    for part, spelled in enumerate(_SPELLED):
        if part not in parts:
            raise CheckpointError(
                f"{name}: lacks the {spelled} matrix of expert {index} in layer {layer}: it is incomplete"
            )
    return Expert(parts[0], parts[1], parts[2])


def _alike(experts: tuple[Expert, ...]) -> tuple[int, int]:
    """Own size and hidden size of all."""
    first = experts[0].gate
    if len(first.shape) != 2:
        raise CheckpointError(
            f"{first.file}: tensor {first.name!r} has shape {list(first.shape)}, not two sizes"
        )
    size, hidden = first.shape
    for expert in experts:
        for info, wanted in zip(expert, ((size, hidden), (size, hidden), (hidden, size)), strict=True):
            if info.shape != wanted:
                raise CheckpointError(
                    f"{info.file}: tensor {info.name!r} has shape {list(info.shape)}, expected {list(wanted)}"
                )
    return size, hidden
