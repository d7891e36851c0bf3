"""A machine and a model by name, as far as a simulation of agents needs them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from braid.core.errors import InvalidParameterError
from braid.core.spec import DTYPE_BYTES
from braid.policy.phases.curves import CORES, SMS, Curves
from braid.sim.executor import StepTime, TierTime
from braid.sim.gpus import gpu_named
from braid.sim.machine import load_machine
from braid.sim.roofline import Roofline
from braid.sim.sizes import ALIASES, KV_BYTES, MODELS, model_named

MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 2048
TRANSFER_S = 0.0002
"""Seconds that any transfer takes beside its bytes, assumed."""
GPU_UNITS = 16
"""Groups of SMs that a GPU is divided in: about eight SMs each."""
GPU_PREFILL_PART = 0.75
"""Of SMs that both lanes were given, what prompts get of them, assumed: decodes wait for memory most of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """Args:
    words: what the times stand for, and how far they are to be trusted.
    context: tokens that the model was made for.
    kv_tokens: that fit.
    link: bytes per second from the tier below to the device; None where nobody has said.
    kv_bytes_per_token: None where nobody has said.
    num_layers: of the model; 1 where nobody has said.
    num_units, curves, prefill_part: what lanes share, and what a part of it costs; see ``sim.lanes.LaneTime``.
    """

    cost: StepTime
    words: str
    context: int
    kv_tokens: int
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    link: float | None = None
    kv_bytes_per_token: int | None = None
    num_layers: int = 1
    num_units: int = 1
    curves: Curves = CORES
    prefill_part: float = 0.5

    @property
    def can_reshare(self) -> bool:
        """A step on cores takes over others while it runs; one on groups of SMs keeps them to its end."""
        return self.curves is CORES

    def tiers(self, block_size: int, disk: float) -> TierTime:
        """How fast the tiers below are, for blocks of ``block_size`` tokens and a disk of ``disk`` bytes per second.

        Raises:
            InvalidParameterError: nobody knows how many bytes a token's KV has.
        """
        if self.kv_bytes_per_token is None:
            raise InvalidParameterError(
                f"the size of a token's KV is not known here; tiers below the device need one of: {', '.join(MODELS)}",
                param="model",
            )
        if not disk > 0:
            raise InvalidParameterError(f"the disk's speed must be above 0, got {disk}", param="disk_gb_s")
        size = block_size * self.kv_bytes_per_token
        return TierTime(TRANSFER_S, size / self.link if self.link else inf, size / disk)


def roofline_platform(machine: str, model: str, dtype: str) -> Platform:
    """A GPU of the data sheets.

    Raises:
        InvalidParameterError: a name is not known.
        CapacityError: the model does not fit.
    """
    cost = Roofline(gpu_named(machine), model_named(model), dtype)
    return Platform(
        cost=cost,
        words=cost.words,
        context=cost.model.context,
        kv_tokens=cost.kv_tokens,
        link=cost.gpu.link * cost.shares.link,
        kv_bytes_per_token=cost.model.kv_bytes_per_token,
        num_layers=cost.model.layers,
        num_units=GPU_UNITS,
        curves=SMS,
        prefill_part=GPU_PREFILL_PART,
    )


def measured_platform(path: Path, model: str | None) -> Platform:
    """What ``braid calibrate`` measured, with the engine's own limits.

    Args:
        model: which one is expected; None for any.

    Raises:
        MachineError: the file holds no machine.
        InvalidParameterError: it is another model's.
    """
    known = load_machine(path)
    if model is not None and model != known.model and not _name(known.model).startswith(_name(model)):
        raise InvalidParameterError(
            f"{path} was measured with {known.model}, not with {model!r}; leave --model out or calibrate it",
            param="model",
        )
    config = known.config
    return Platform(
        cost=known.cost,
        words=known.words,
        context=config.max_model_len,
        kv_tokens=config.num_blocks * config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_bytes_per_token=_kv_bytes(known.model, known.dtype),
        num_layers=config.num_layers,
        num_units=config.num_units,
    )


def _name(model: str) -> str:
    """Without who made it, as ``MODELS`` are named."""
    name = model.rsplit("/", 1)[-1].lower()
    return ALIASES.get(name, name)


def _kv_bytes(model: str, dtype: str) -> int | None:
    """Of a model that was measured, if it is one of those known here under any name that begins like theirs."""
    found = next((sizes for sizes in MODELS.values() if _name(model).startswith(sizes.name)), None)
    return None if found is None else found.kv_bytes_per_token * DTYPE_BYTES[dtype] // KV_BYTES
