"""The store of experts, as an engine's options want it: none, or slots in memory above a file."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch

from braid.checkpoint.convert import experts_of
from braid.checkpoint.expert_names import is_expert
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.progress import Progress
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertLayout, ExpertShape
from braid.core.faults import Faults
from braid.core.units import parse_amount
from braid.engine.expert_tiers import host_lines, open_store
from braid.models.decoder import CausalLM
from braid.models.parse import parse_config
from braid.policy.experts.budget import ExpertDemand, decimal
from braid.policy.experts.catalog import NAMES, unknown_cache
from braid.runner.experts.module import install
from braid.runner.experts.store import STAGING, ExpertStore

logger = logging.getLogger(__name__)

AUTO = "auto"
LANES = 2
"""That compute at the same time, at most: each has float32 rows for what every pair of token and expert gives."""


class Wanted(NamedTuple):
    """A store that is wanted, before there is one."""

    demand: ExpertDemand
    layout: ExpertLayout


def wanted_experts(config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> Wanted | None:
    """Which experts are to have a store; None where all are loaded like other weights, or there are none.

    There is one where any of its options is given, and for a folder of ``braid convert``, whose experts are nowhere
    else.

    Raises:
        InvalidParameterError: the model has no experts, or the options cannot be met; the text names them.
    """
    given = _given(config)
    if not given and checkpoint.experts is None:
        return None
    model = parse_config(checkpoint.config)
    if model.moe is None:
        raise InvalidParameterError(
            f"{given[0]} is for mixtures of experts, and {config.model} ({model.architecture}) is none: leave it out",
            param=given[0],
        )
    if config.expert_cache not in NAMES:
        raise unknown_cache(config.expert_cache)
    shape = ExpertShape(sum(model.moe.layers), model.moe.num_experts, model.moe.top_k)
    layout = _layout(_format(config, checkpoint, dtype), model.hidden_size, model.moe.size)
    demand = ExpertDemand(
        shape=shape,
        parameters=shape.total * 3 * model.hidden_size * model.moe.size,
        slot_bytes=layout.record_bytes,
        num_staging=STAGING,
        pair_bytes=LANES * shape.top_k * model.hidden_size * 4,
        asked=parse_amount(AUTO if config.expert_memory is None else config.expert_memory, "expert_memory"),
    )
    demand.asked_slots()
    return Wanted(demand, layout)


def _given(config: EngineConfig) -> list[str]:
    """The options about experts that are not at their defaults."""
    ours = [field for field in fields(EngineConfig) if field.name.startswith("expert_")]
    return [field.name for field in ours if getattr(config, field.name) != field.default]


def _format(config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    stored = None if checkpoint.experts is None else checkpoint.experts.layout.format
    if config.expert_format == AUTO:
        return stored or str(dtype).removeprefix("torch.")
    if stored not in (None, config.expert_format):
        raise InvalidParameterError(
            f"expert_format is {config.expert_format!r}, but {config.model} was converted to {stored}: leave it out, "
            "or convert the model again",
            param="expert_format",
        )
    return config.expert_format


def _layout(format: str, hidden: int, size: int) -> ExpertLayout:
    try:
        return ExpertLayout(format, hidden, size)
    except ValueError as error:
        raise InvalidParameterError(f"expert_format: {error}", param="expert_format") from error


@dataclass(frozen=True, slots=True)
class Held:
    """What an engine has of a store of experts: nothing, or one that its model computes with."""

    config: EngineConfig
    store: ExpertStore | None = None

    def skip(self, name: str) -> bool:
        """Is this a tensor that is not loaded, since the store has it?"""
        return self.store is not None and is_expert(name)

    @property
    def marks(self) -> dict[str, Any]:
        """What makes the KV of equal tokens differ from that of other experts."""
        if self.store is None:
            return {}
        file = self.store.file
        return {"experts": [file.layout.format, zlib.crc32(file.checksums.tobytes())]}

    @property
    def described(self) -> Mapping[str, str]:
        if self.store is None:
            return {}
        return {
            "policy": self.config.expert_cache,
            "scope": self.config.expert_scope,
            "format": self.store.layout.format,
            "prefetch": self.config.expert_prefetch,
        }

    def lines(self) -> list[str]:
        """As rows for people."""
        if self.store is None:
            return []
        file, slots, shape = self.store.file, self.store.table.num_slots, self.store.shape
        size = file.layout.record_bytes
        where = (
            "direct reads" if self.store.is_direct else "reads through the page cache: no direct ones here"
        )
        random = ["its numbers are random: made for measuring, of no use for text"] if file.is_random else []
        return [
            f"experts: {shape.total} of {decimal(size)} ({file.layout.format}), {slots} slots = "
            f"{decimal(slots * size)} ({slots / shape.total:.0%}), cycle {shape.cycle}",
            f"policy {self.config.expert_cache} ({self.config.expert_scope}), prefetch "
            f"{self.config.expert_prefetch}; file {file.path}, {where}",
            *host_lines(self.config, self.store.host),
            *random,
        ]

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def hold_experts(
    config: EngineConfig,
    wanted: Wanted | None,
    num_slots: int,
    checkpoint: Checkpoint,
    model: CausalLM,
    *,
    progress: Progress,
    faults: Faults,
) -> Held:
    """Find the file of experts or make it, open a store above it, and let the model compute with that.

    Raises:
        BraidError: the file cannot be made or read, or holds another model's experts, or there is no memory.
    """
    if wanted is None:
        return Held(config)
    demand, layout = wanted
    for note in demand.notes(num_slots):
        logger.warning("%s", note)
    file = experts_of(checkpoint, layout.format, progress=progress)
    file.check_model(demand.shape, layout.hidden, layout.size)
    store = open_store(config, demand, file, num_slots, model.device, faults=faults)
    install(model, store)
    return Held(config, store)
