"""What a scheduler is made of: numbers that do not change while it lives, and policies."""

from __future__ import annotations

from dataclasses import dataclass, field

from braid.core.errors import CapacityError, InvalidParameterError
from braid.policy.admission import Admission, WatermarkAdmission
from braid.policy.agents.costs import Costs
from braid.policy.agents.plain import lru
from braid.policy.agents.policy import AgentPolicy
from braid.policy.phases.fixed import Mixed
from braid.policy.phases.policy import Phases

MIXED = "mixed"
"""The lane whose steps hold decodes and prefill chunks together."""
PREFILL, DECODE = "prefill", "decode"
"""The lanes of one phase each; neither runs beside ``mixed``."""
COMPUTING = (MIXED, PREFILL, DECODE)
TIER = "tier"
"""The lane whose steps copy blocks between the device and the tiers below it."""
TIER_STALL_S = 60.0
"""Seconds after which a step of that lane counts as stuck."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Limits of one engine.

    Args:
        num_blocks, block_size: the KV store, and tokens per block.
        least_blocks, most_blocks: between which the number of blocks may be moved while serving; 0 for ``num_blocks``.
        max_num_seqs: requests running at the same time.
        max_num_batched_tokens: tokens computed in one step; at least ``max_num_seqs``, so that no prefill
        starves.
        max_model_len: prompt and output tokens of one request.
        watermark: fraction of the blocks that an admission must leave free. In [0, 1).
        max_waiting: requests that may queue before new ones are refused.
        num_units: cores, or groups of SMs, that lanes share.
        can_reshare: whether a step in flight can be given more or fewer of them.
        num_layers: of the model, which steps may compute a few at a time.
        num_host_blocks, num_disk_blocks: slots of the tiers below the device, 0 for none. With any, the executor must
        have the lane ``tier``.

    Raises:
        InvalidParameterError: naming the field and its valid range.
        CapacityError: one request of ``max_model_len`` tokens does not fit.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int
    watermark: float = 0.01
    max_waiting: int = 10_000
    num_units: int = 1
    can_reshare: bool = False
    num_layers: int = 1
    num_host_blocks: int = 0
    num_disk_blocks: int = 0
    least_blocks: int = 0
    most_blocks: int = 0

    @property
    def num_lower_blocks(self) -> int:
        """Blocks that can be kept below the device; each tier has copies of its own."""
        return max(self.num_host_blocks, self.num_disk_blocks)

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_num_seqs", "max_waiting", "num_units", "num_layers"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_host_blocks", "num_disk_blocks"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        least, most = self.block_bounds
        self._require("least_blocks", 1 <= least <= self.num_blocks, f"in [1, {self.num_blocks}]")
        self._require("most_blocks", most >= self.num_blocks, f"at least {self.num_blocks}")
        self._require("max_model_len", self.max_model_len >= 2, "at least 2")
        valid = f"at least max_num_seqs ({self.max_num_seqs})"
        self._require("max_num_batched_tokens", self.max_num_batched_tokens >= self.max_num_seqs, valid)
        self._require("watermark", 0 <= self.watermark < 1, "in [0, 1)")
        capacity = least * self.block_size
        if capacity < self.max_model_len:
            raise CapacityError(
                f"max_model_len is {self.max_model_len} tokens, but the KV store holds {capacity} "
                f"({least} blocks of {self.block_size})"
            )

    @property
    def block_bounds(self) -> tuple[int, int]:
        """The fewest and the most blocks that there may be."""
        return self.least_blocks or self.num_blocks, self.most_blocks or self.num_blocks

    def _require(self, name: str, ok: bool, valid: str) -> None:
        if not ok:
            raise InvalidParameterError(f"{name} must be {valid}, got {getattr(self, name)!r}", param=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """The scheduler's replaceable decisions.

    Args:
        admission: None stands for the watermark of the config.
        costs: what the policies in ``agents`` ask; the scheduler tells it of every step.
    """

    agents: AgentPolicy = field(default_factory=lru)
    phases: Phases = field(default_factory=Mixed)
    admission: Admission | None = None
    costs: Costs | None = None

    def admission_for(self, config: SchedulerConfig) -> Admission:
        return self.admission or WatermarkAdmission(
            max_num_seqs=config.max_num_seqs, watermark=config.watermark
        )
