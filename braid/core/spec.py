"""Models and machines as numbers: what policies, the simulator and memory planning know of them."""

from __future__ import annotations

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model's sizes.

    Args:
        kv_numbers_per_token: KV numbers one token adds over all layers: ``2 * layers * kv_heads * head_dim`` for
            grouped-query attention, ``layers * (kv_lora_rank + qk_rope_head_dim)`` for MLA.
        active_parameters: parameters that one token touches (fewer than ``num_parameters`` in a mixture of experts).
    """

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    num_parameters: int
    active_parameters: int
    kv_numbers_per_token: int

    def weight_bytes(self, dtype: str) -> int:
        return self.num_parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        return self.kv_numbers_per_token * DTYPE_BYTES[dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """A machine's limits. Bytes and bytes per second; ``None`` where not measured."""

    cpu_name: str
    cores: int
    isa: str
    ram_bytes: int
    ram_available_bytes: int
    memory_bandwidth: float | None = None
    gpu_name: str | None = None
    gpu_bytes: int = 0
    gpu_free_bytes: int = 0
