"""Checkpoint tensors into a model, one at a time, with proof that every weight was set exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from braid.core.errors import CheckpointError
from braid.models.decoder import CausalLM

SHOWN_NAMES = 5
BARE = "model."
"""What names of whole models begin with, and those of bare decoders do not."""


class Target(NamedTuple):
    """Where one checkpoint tensor goes: rows ``[start, start + shape[0])`` of a weight (of one expert of it)."""

    module: nn.Module
    leaf: str
    shape: tuple[int, ...]
    start: int
    expert: int | None
    alone: bool


def _targets_of(
    module: nn.Module, leaf: str, weight: Tensor, sources: tuple[str, ...]
) -> Iterator[tuple[str, Target]]:
    stacked = weight.dim() == 3
    shape = tuple(weight.shape[1:] if stacked else weight.shape)
    rows: tuple[int, ...] = getattr(module, "rows", shape[:1])
    for expert in range(len(weight)) if stacked else [None]:
        start = 0
        for source, count in zip(sources, rows, strict=True):
            name = f"{source.format(x=expert)}.{leaf}"
            yield (
                name,
                Target(module, leaf, (count, *shape[1:]), start, expert, not stacked and len(rows) == 1),
            )
            start += count


def expected_tensors(model: CausalLM) -> dict[str, Target]:
    """Every checkpoint tensor the model needs, by name."""
    targets: dict[str, Target] = {}
    for path, module in model.named_modules():
        own = [(leaf, weight) for leaf, weight in module.named_parameters(recurse=False)]
        if not own:
            continue
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        key = f"blocks.{{l}}.{in_block[2]}" if in_block else path
        layer = in_block[1] if in_block else ""
        sources = tuple(name.replace("{l}", layer) for name in model.names[key])
        for leaf, weight in own:
            targets.update(_targets_of(module, leaf, weight, sources))
    return targets


def _place(target: Target, tensor: Tensor, device: torch.device) -> None:
    """Copy into the stacked weight, or adopt a tensor that is the whole weight and needs no change."""
    weight: Tensor = getattr(target.module, target.leaf)
    offset = getattr(target.module, "load_offset", 0.0)
    if target.alone:
        tensor = tensor.to(device, weight.dtype).contiguous()
        tensor = tensor + offset if offset else tensor
        setattr(target.module, target.leaf, nn.Parameter(tensor, requires_grad=False))
        return
    if weight.is_meta:
        weight = torch.empty(weight.shape, dtype=weight.dtype, device=device)
        setattr(target.module, target.leaf, nn.Parameter(weight, requires_grad=False))
    into = weight if target.expert is None else weight[target.expert]
    into[target.start : target.start + target.shape[0]].copy_(tensor)


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for prefix, instead in renames:
        if name.startswith(prefix):
            return instead + name[len(prefix) :]
    return name


def _check(name: str, tensor: Tensor, target: Target) -> None:
    if tuple(tensor.shape) != target.shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(tensor.shape)}, expected {list(target.shape)}"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(f"tensor {name!r} has dtype {tensor.dtype}, expected floating-point numbers")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN_NAMES} more" if len(ordered) > SHOWN_NAMES else ""
    return ", ".join(ordered[:SHOWN_NAMES]) + more


@torch.no_grad()
def load_weights(model: CausalLM, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Fill ``model`` with ``(name, tensor)`` pairs in any order, cast to the model's dtypes, moved to its device.

    A tensor that already has the right dtype and device, and is not stacked with others, is adopted without a copy: a
    memory-mapped file stays mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown, given twice, or of the wrong shape or kind; the text names it.
    """
    targets = expected_tensors(model)
    inert = re.compile("|".join(f"(?:{pattern})" for pattern in model.inert))
    missing, unknown = set(targets), []
    for stored, tensor in tensors:
        name = _renamed(stored, model.renames)
        if f"{BARE}{name}" in targets:  # saved from the decoder alone, as embedding models are
            name = f"{BARE}{name}"
        target = targets.get(name)
        if target is None:
            if not inert.fullmatch(name):
                unknown.append(name)
            continue
        if name not in missing:
            raise CheckpointError(f"tensor {name!r} occurs twice in the checkpoint")
        _check(name, tensor, target)
        _place(target, tensor, model.device)
        missing.remove(name)
    if unknown:
        raise CheckpointError(
            f"the checkpoint holds {len(unknown)} tensors this model has no place for: {_some(unknown)}"
        )
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors: {_some(missing)}")
