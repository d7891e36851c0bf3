"""Machines that compute experts on two sides of a link, as data sheets describe them. Nothing here was measured.

Where the numbers come from:

* GPU: ``braid.sim.gpus`` (the maker's data sheet: memory bandwidth, dense bfloat16, PCIe 4.0 x16 at 32 GB/s one way).
* CPU: Intel's data sheet of the Xeon Gold 5220R (24 cores at 2.2 GHz, six channels of DDR4-2666: 128 GB/s). Ten cores
  are used, as in HybriMoE (arXiv 2504.05897). Peak: 2.2 GHz x 64 bytes x 2 operations in one unit of 512 bits per
  core, since kernels for int4 weights multiply int8 (its "deep learning boost").
* What kernels reach of these peaks is assumed, and in ``Shares``.

``a6000-xeon10`` is that. ``a6000-xeon10-fitted`` differs in one number: how fast the CPU reads weights is chosen so
that a decode of Qwen2-57B-A14B with a quarter of its experts on the GPU, placed once and for all, takes 0.21 seconds,
which is what was published of KTransformers on this machine in early 2025; everything else follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

from braid.core.errors import BraidError, InvalidParameterError
from braid.policy.experts.policy import ExpertTimes
from braid.sim.gpus import GPUS, Gpu
from braid.sim.sizes import WEIGHT_BYTES, ModelSizes

SCALES: Mapping[str, float] = MappingProxyType({"bfloat16": 1.0, "int8": 1 + 2 / 128, "int4": 1 + 4 / 128})
"""Bytes of an expert with the scales of its groups of 128, by those without."""
DENSE_BYTES = 2
"""Of a weight of attention, or of a router."""
MADE_UP = "data sheets and assumed shares of their peaks; nothing measured"
FITTED = (
    "data sheets, except that the CPU's speed is fitted to one published number: 0.21 s per token of KTransformers "
    "with Qwen2-57B-A14B at 25 %"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """The side below.

    Args:
        flops: operations of the cores that are used, per second, in int8.
        bandwidth: bytes per second of its memory.
    """

    name: str
    flops: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What kernels reach of the peaks, and what they cost beside them: assumed, the same for every model.

    Args:
        gpu_flops, gpu_memory, link, cpu_flops, cpu_memory: parts of the peaks.
        launch_s: of one expert on the GPU: three kernels.
        transfer_s: beginning a transfer.
        layer_s: of a layer's other kernels on the GPU, without graphs, and of telling the host who was chosen.
        first_s: of the first expert of a layer on the CPU: waking its threads, and a cold cache.
        predict_s: of asking one later layer's router.
    """

    gpu_flops: float = 0.5
    gpu_memory: float = 0.8
    link: float = 0.8
    cpu_flops: float = 0.25
    cpu_memory: float = 0.6
    launch_s: float = 20e-6
    transfer_s: float = 10e-6
    layer_s: float = 120e-6
    first_s: float = 30e-6
    predict_s: float = 10e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCosts:
    """What a layer costs.

    Args:
        times: of its experts.
        dense_s: of all else, ``dense_row_s`` per row.
        predict_s: of asking one later layer's router.
        expert_bytes: over the link.
        words: how far the numbers are to be trusted.
    """

    times: ExpertTimes
    dense_s: float
    dense_row_s: float
    predict_s: float
    expert_bytes: float
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertMachine:
    name: str
    gpu: Gpu
    cpu: Cpu
    words: str
    shares: Shares = Shares()

    def costs(self, model: ModelSizes, dtype: str) -> LayerCosts:
        """Of one layer. Weights of MLPs are of ``dtype``, those of experts that all use included; all else is bfloat16.
        The KV that attention reads is left out.

        Raises:
            InvalidParameterError: the model has no experts, or the dtype is not known.
        """
        _check(model, dtype)
        shares = self.shares
        scale = WEIGHT_BYTES[dtype] * SCALES[dtype]
        size = model.expert_weights * scale
        flops = 2.0 * model.expert_weights
        link_s = size / (self.gpu.link * shares.link) + shares.transfer_s
        dense_bytes = (model.attention_weights * DENSE_BYTES + model.always_weights * scale) / model.layers
        dense_flops = 2.0 * (model.attention_weights + model.always_weights) / model.layers
        times = ExpertTimes(
            link_s=link_s,
            link_busy_s=link_s,
            fast_s=size / (self.gpu.bandwidth * shares.gpu_memory) + shares.launch_s,
            fast_row_s=flops / (self.gpu.flops * shares.gpu_flops),
            slow_s=size / (self.cpu.bandwidth * shares.cpu_memory),
            slow_row_s=flops / (self.cpu.flops * shares.cpu_flops),
            slow_first_s=shares.first_s,
        )
        return LayerCosts(
            times=times,
            dense_s=dense_bytes / (self.gpu.bandwidth * shares.gpu_memory) + shares.layer_s,
            dense_row_s=dense_flops / (self.gpu.flops * shares.gpu_flops),
            predict_s=shares.predict_s,
            expert_bytes=size,
            words=f"{model.name} ({dtype} experts) on {self.name}: {self.words}",
        )


XEON10 = Cpu(name="xeon-5220r-10", flops=10 * 2.2e9 * 128, bandwidth=6 * 8 * 2666e6)
FITTED_SHARE = 0.084
"""Of the CPU's memory bandwidth: about 11 GB/s. See above, and ``tests/sim/experts/test_machines.py``."""
MACHINES: Mapping[str, ExpertMachine] = MappingProxyType(
    {
        machine.name: machine
        for machine in (
            ExpertMachine(name="a6000-xeon10", gpu=GPUS["a6000"], cpu=XEON10, words=MADE_UP),
            ExpertMachine(
                name="a6000-xeon10-fitted",
                gpu=GPUS["a6000"],
                cpu=XEON10,
                words=FITTED,
                shares=replace(Shares(), cpu_memory=FITTED_SHARE),
            ),
        )
    }
)


def costs_of(machine: str, model: ModelSizes, dtype: str) -> LayerCosts:
    """Of one of ``MACHINES``, or of a JSON file with the fields of ``ExpertTimes`` and, as far as they are known,
    ``dense_s``, ``dense_row_s`` and ``predict_s``; ``slow_s`` null where the side below computes nothing.

    Raises:
        InvalidParameterError: there is none of that name, or the file holds no times.
    """
    if machine in MACHINES:
        return MACHINES[machine].costs(model, dtype)
    path = Path(machine)
    if not path.exists():
        raise InvalidParameterError(
            f"machine {machine!r} is not known; choices: {', '.join(MACHINES)}, or a file with the times of experts",
            param="machine",
        )
    _check(model, dtype)
    try:
        return _costs_from(json.loads(path.read_text(encoding="utf-8")), model, dtype, path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BraidError):
            raise
        raise InvalidParameterError(
            f"{machine} holds no times of experts: {error}", param="machine"
        ) from None


def _costs_from(data: Mapping[str, Any], model: ModelSizes, dtype: str, name: str) -> LayerCosts:
    link_s, fast_s = float(data["link_s"]), float(data["fast_s"])
    slow_s = inf if data["slow_s"] is None else float(data["slow_s"])
    times = ExpertTimes(
        link_s=link_s,
        link_busy_s=float(data.get("link_busy_s", link_s)),
        fast_s=fast_s,
        fast_row_s=float(data.get("fast_row_s", 0.0)),
        slow_s=slow_s,
        slow_row_s=float(data.get("slow_row_s", 0.0)),
        slow_first_s=float(data.get("slow_first_s", 0.0)),
    )
    if not all(seconds >= 0 for seconds in times) or not link_s > 0:
        raise ValueError(f"times must not be negative, and link_s above 0, got {dict(times._asdict())}")
    return LayerCosts(
        times=times,
        dense_s=float(data.get("dense_s", 0.0)),
        dense_row_s=float(data.get("dense_row_s", 0.0)),
        predict_s=float(data.get("predict_s", 0.0)),
        expert_bytes=model.expert_weights * WEIGHT_BYTES[dtype] * SCALES[dtype],
        words=f"{model.name} ({dtype} experts), times of {name}",
    )


def _check(model: ModelSizes, dtype: str) -> None:
    if not model.num_experts:
        raise InvalidParameterError(f"{model.name} has no experts", param="model")
    if dtype not in WEIGHT_BYTES:
        raise InvalidParameterError(
            f"dtype must be one of {', '.join(WEIGHT_BYTES)}, got {dtype!r}", param="dtype"
        )
