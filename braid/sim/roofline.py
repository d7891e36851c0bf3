"""How long a step would take on a GPU if only arithmetic, memory and a fixed overhead counted.

``T = overhead + max(arithmetic, weights read) + max(attention's arithmetic, KV read) + max(head's, its weights read)``.

The peaks are data sheets', the shares of them that real kernels reach are assumptions, the same for every GPU. So
ratios between policies are worth more than seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.step import Work
from braid.policy.cost import Estimate
from braid.sim.gpus import GIB, ROOFLINE, Gpu
from braid.sim.sizes import WEIGHT_BYTES, ModelSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What real kernels reach of the peaks, assumed.

    Args:
        matmul, attention: of the arithmetic, in matrix products and in the attention of prompts.
        memory, link: of the bandwidths.
        overhead_s: launching and scheduling, per step.
        memory_used: of the GPU's memory, for weights, KV and the rest.
        rest: bytes for activations and the runtime.
    """

    matmul: float = 0.55
    attention: float = 0.4
    memory: float = 0.8
    link: float = 0.8
    overhead_s: float = 0.002
    memory_used: float = 0.9
    rest: int = 2 * GIB


@dataclass(frozen=True, slots=True)
class Roofline:
    """Step times of a model on a GPU. ``dtype`` is the weights': one of ``WEIGHT_BYTES``; arithmetic and KV are
    bfloat16.

    Raises:
        InvalidParameterError: the dtype is not known.
    """

    gpu: Gpu
    model: ModelSizes
    dtype: str = "bfloat16"
    shares: Shares = Shares()

    def __post_init__(self) -> None:
        if self.dtype not in WEIGHT_BYTES:
            raise InvalidParameterError(
                f"dtype must be one of {', '.join(WEIGHT_BYTES)}, got {self.dtype!r}", param="dtype"
            )

    @property
    def words(self) -> str:
        return f"{self.model.name} ({self.dtype}) on {self.gpu.name}: {ROOFLINE}"

    @property
    def kv_tokens(self) -> int:
        """How many tokens' KV fit beside the weights.

        Raises:
            CapacityError: the weights alone do not fit.
        """
        weights = self.model.num_weights * WEIGHT_BYTES[self.dtype]
        usable = self.gpu.memory * self.shares.memory_used - self.shares.rest
        if weights >= usable:
            raise CapacityError(
                f"the weights of {self.model.name} take {weights / GIB:.1f} GiB in {self.dtype}, but {self.gpu.name} "
                f"has {usable / GIB:.1f} GiB for weights and KV; choose a smaller dtype ({', '.join(WEIGHT_BYTES)}), "
                "another machine or another model"
            )
        return int((usable - weights) / self.model.kv_bytes_per_token)

    def reload_s(self, num_tokens: int) -> float:
        """To copy so many tokens' KV from the host's memory."""
        return num_tokens * self.model.kv_bytes_per_token / (self.gpu.link * self.shares.link)

    def step(self, works: Iterable[Work]) -> Estimate:
        """Of one step; a decode reads all of its context, a chunk attends to all before it and half of itself."""
        tokens = rows = chunk_pairs = chunk_context = decode_context = 0
        for work in works:
            count = len(work.token_ids)
            tokens += count
            rows += work.sample is not None
            if work.is_decode:
                decode_context += work.start + 1
            else:
                chunk_pairs += count * work.start + count * (count + 1) // 2
                chunk_context += work.start + count
        return Estimate(
            self.shares.overhead_s
            + self._dense_s(tokens)
            + self._head_s(rows)
            + self._attention_s(chunk_pairs, chunk_context)
            + self._attention_s(decode_context, decode_context)
        )

    def _dense_s(self, tokens: int) -> float:
        flops = 2.0 * self.model.used_weights * tokens
        return self._bound(
            flops, self.shares.matmul, self.model.touched_weights(tokens) * WEIGHT_BYTES[self.dtype]
        )

    def _head_s(self, rows: int) -> float:
        if not rows:
            return 0.0
        weights = self.model.head_weights
        return self._bound(2.0 * weights * rows, self.shares.matmul, weights * WEIGHT_BYTES[self.dtype])

    def _attention_s(self, pairs: int, context: int) -> float:
        model = self.model
        flops = 4.0 * model.layers * model.heads * model.head_dim * pairs
        return self._bound(flops, self.shares.attention, float(context * model.kv_bytes_per_token))

    def _bound(self, flops: float, share: float, num_bytes: float) -> float:
        return max(flops / (self.gpu.flops * share), num_bytes / (self.gpu.bandwidth * self.shares.memory))
