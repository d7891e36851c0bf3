"""A machine and a model by name, as far as a simulation of agents needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from braid.core.errors import InvalidParameterError
from braid.sim.executor import StepTime
from braid.sim.gpus import gpu_named
from braid.sim.machine import load_machine
from braid.sim.roofline import Roofline
from braid.sim.sizes import model_named

MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """Args:
    words: what the times stand for, and how far they are to be trusted.
    context: tokens that the model was made for.
    kv_tokens: that fit.
    link: bytes per second from the tier below to the device; None where nobody has said.
    kv_bytes_per_token: None where nobody has said.
    """

    cost: StepTime
    words: str
    context: int
    kv_tokens: int
    max_num_seqs: int = MAX_NUM_SEQS
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    link: float | None = None
    kv_bytes_per_token: int | None = None


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
    if model is not None and model not in (known.model, known.model.rsplit("/", 1)[-1]):
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
    )
