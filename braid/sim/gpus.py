"""GPUs to simulate, as their makers' data sheets describe them. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from braid.core.errors import InvalidParameterError

GIB = 1 << 30
ROOFLINE = "roofline estimate from data sheets, never checked on this GPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU.

    Args:
        flops: dense bfloat16 operations per second, sums in float32.
        bandwidth: bytes per second of its memory.
        memory: bytes.
        link: bytes per second from and to the host's memory, one way.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu(name="a100-80g", flops=312e12, bandwidth=2.039e12, memory=80 * GIB, link=32e9),
            Gpu(name="h100", flops=989e12, bandwidth=3.35e12, memory=80 * GIB, link=64e9),
            Gpu(name="h200", flops=989e12, bandwidth=4.8e12, memory=141 * 10**9, link=64e9),
            Gpu(name="rtx4090", flops=165e12, bandwidth=1.008e12, memory=24 * GIB, link=32e9),
            Gpu(name="a6000", flops=155e12, bandwidth=0.768e12, memory=48 * GIB, link=32e9),
        )
    }
)
"""A100 SXM (PCIe 4), H100 and H200 SXM (PCIe 5), GeForce RTX 4090, RTX A6000 of the Ampere generation."""


def gpu_named(name: str) -> Gpu:
    """One of ``GPUS``.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    if name not in GPUS:
        choices = ", ".join([*GPUS, "this", "a file of braid calibrate"])
        raise InvalidParameterError(f"machine {name!r} is not known; choices: {choices}", param="machine")
    return GPUS[name]
