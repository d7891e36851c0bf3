"""How a model, its KV blocks and its batches share a machine's memory. Pure reckoning: nothing is measured
here.
"""

from __future__ import annotations

from dataclasses import dataclass

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.spec import DTYPE_BYTES, MachineSpec, ModelSpec
from braid.policy.experts.budget import ExpertDemand

MIB = 1 << 20
GIB = 1 << 30

CPU_KV_FRACTION = 0.25
"""Share of a CPU machine's available memory that the KV store takes unasked: other programs live there too.
"""
MIN_MODEL_LEN = 256
"""A context that nobody asked for is not shrunk below this."""
RUNTIME_BYTES = 512 * MIB
"""Interpreter, libraries and allocator slack of the engine process."""
HIDDEN_COPIES = 16
"""Float32 rows of the hidden size that one scheduled token needs at the widest point of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Who gets how many bytes, and the limits that follow from it.

    ``weight_bytes + expert_bytes + kv_bytes + activation_bytes + overhead_bytes <= budget_bytes``, and
    ``num_blocks * block_size >= max_model_len``. ``notes`` tells what was changed unasked. Experts are among the
    weights unless they have slots of their own.
    """

    device: str
    available_bytes: int
    budget_bytes: int
    weight_bytes: int
    activation_bytes: int
    overhead_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_expert_slots: int = 0
    expert_bytes: int = 0
    """Of the slots and of what experts without one go through."""
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV fits."""
        return self.num_blocks * self.block_size

    @property
    def spare_bytes(self) -> int:
        used = self.weight_bytes + self.expert_bytes + self.kv_bytes + self.activation_bytes
        return self.budget_bytes - used - self.overhead_bytes

    def lines(self) -> list[str]:
        """The reckoning as rows for people."""
        rows = [
            ("available", self.available_bytes, f"memory of the {self.device}"),
            ("budget", self.budget_bytes, f"{self.budget_bytes / max(1, self.available_bytes):.0%} of it"),
            ("weights", self.weight_bytes, "without experts" if self.num_expert_slots else ""),
            ("experts", self.expert_bytes, f"{self.num_expert_slots} slots, and staging"),
            ("activations", self.activation_bytes, f"{self.max_num_batched_tokens} tokens in one step"),
            ("runtime", self.overhead_bytes, ""),
            (
                "KV",
                self.kv_bytes,
                f"{self.num_blocks} blocks of {self.block_size} = {self.num_tokens} tokens",
            ),
            ("spare", self.spare_bytes, ""),
        ]
        if not self.num_expert_slots:
            rows = [row for row in rows if row[0] != "experts"]
        lines = [f"{name:<12} {human(size):>10}  {remark}".rstrip() for name, size, remark in rows]
        limits = f"context {self.max_model_len} tokens, at most {self.max_num_seqs} requests at a time"
        return [*lines, limits, *self.notes]


def human(size: int) -> str:
    """Bytes as text: ``1.50 GiB``."""
    return f"{size / GIB:.2f} GiB" if abs(size) >= GIB else f"{size / MIB:.1f} MiB"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """What is left for KV once everything else has its share."""

    on_gpu: bool
    available: int
    budget: int
    weights: int
    activations: int
    overhead: int
    load_copy: int
    experts: int = 0
    """At least; of those that have slots of their own."""
    hint: str = ""

    @property
    def device(self) -> str:
        return "GPU" if self.on_gpu else "CPU"

    @property
    def kv(self) -> int:
        return self.budget - self.weights - self.experts - self.activations - self.overhead

    def reckoning(self) -> str:
        copy = f" + {human(self.load_copy)} to load them" if self.load_copy else ""
        experts = f", {human(self.experts)} experts" if self.experts else ""
        return (
            f"{human(self.weights)} weights{copy}{experts}, {human(self.activations)} activations, "
            f"{human(self.overhead)} runtime; {human(self.budget)} may be used of "
            f"{human(self.available)} available on the {self.device}"
        )


def fit(
    model: ModelSpec,
    machine: MachineSpec,
    *,
    dtype: str,
    kv_dtype: str,
    block_size: int = 16,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_cache_bytes: int | None = None,
    memory_fraction: float = 0.9,
    overhead_bytes: int = RUNTIME_BYTES,
    load_copy_bytes: int = 0,
    experts: ExpertDemand | None = None,
) -> MemoryPlan:
    """Share the memory of the GPU if ``machine`` has one, else of the CPU.

    None leaves a choice to the reckoning. Unasked, the KV store holds ``max_num_seqs`` full contexts, on a
    CPU at most a quarter of the available memory; a context that nobody asked for shrinks to what fits.

    Args:
        memory_fraction: of the available memory, what may be used at all. In (0, 1].
        load_copy_bytes: what loading needs beside the weights, before there is a KV store.
        experts: those that have slots of their own, and a file for the others. Unless they were given a size they get
            what KV leaves, and at least what one token uses.

    Raises:
        InvalidParameterError: a number is out of its range.
        CapacityError: the weights, or one request of the asked context, cannot fit; with the numbers.
    """
    _check(model, dtype, kv_dtype, block_size, max_model_len, kv_cache_bytes, memory_fraction)
    on_gpu = machine.gpu_bytes > 0
    seqs, batched = _batch_limits(on_gpu, max_num_seqs, max_num_batched_tokens)
    available = machine.gpu_free_bytes if on_gpu else machine.ram_available_bytes
    room = _Room(
        on_gpu=on_gpu,
        available=available,
        budget=int(available * memory_fraction),
        weights=model.weight_bytes(dtype) - (experts.parameters * DTYPE_BYTES[dtype] if experts else 0),
        activations=_activation_bytes(model, seqs, batched)
        + (batched * experts.pair_bytes if experts else 0),
        overhead=overhead_bytes,
        load_copy=load_copy_bytes,
        experts=experts.least_bytes() if experts else 0,
        hint=_hint(model, experts),
    )
    block_bytes = block_size * model.kv_bytes_per_token(kv_dtype)
    context = max_model_len or model.max_model_len
    wanted = _kv_bytes(room, seqs * context, context, block_size, block_bytes, kv_cache_bytes, max_model_len)
    num_blocks = wanted // block_bytes
    context, notes = _context(room, context, num_blocks, block_size, block_bytes, max_model_len)
    slots = experts.slots_in(room.experts + room.kv - num_blocks * block_bytes) if experts else 0
    return MemoryPlan(
        device=room.device,
        available_bytes=available,
        budget_bytes=room.budget,
        weight_bytes=room.weights,
        activation_bytes=room.activations,
        overhead_bytes=room.overhead,
        kv_bytes=num_blocks * block_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(kv_dtype),
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=context,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        num_expert_slots=slots,
        expert_bytes=slots * experts.slot_bytes + experts.staging_bytes if experts else 0,
        notes=(*notes, *(experts.notes(slots) if experts else ())),
    )


def _hint(model: ModelSpec, experts: ExpertDemand | None) -> str:
    """What else helps where the model does not fit."""
    if experts is not None:
        return "Use a smaller model, dtype or expert_memory."
    if model.active_parameters < model.num_parameters:
        return (
            "Use a smaller model or dtype, or keep a part of its experts in memory and the others in a file: "
            "--expert-memory auto, or a size such as --expert-memory 25%."
        )
    return "Use a smaller model or dtype."


def _check(
    model: ModelSpec,
    dtype: str,
    kv_dtype: str,
    block_size: int,
    max_model_len: int | None,
    kv_cache_bytes: int | None,
    memory_fraction: float,
) -> None:
    for name, value in (("dtype", dtype), ("kv_dtype", kv_dtype)):
        _require(value in DTYPE_BYTES, name, value, f"one of {', '.join(DTYPE_BYTES)}")
    _require(block_size >= 1, "block_size", block_size, "at least 1")
    _require(0 < memory_fraction <= 1, "memory_fraction", memory_fraction, "in (0, 1]")
    if kv_cache_bytes is not None:
        _require(kv_cache_bytes > 0, "kv_cache_bytes", kv_cache_bytes, "more than 0")
    if max_model_len is not None:
        limit = model.max_model_len
        _require(
            2 <= max_model_len <= limit, "max_model_len", max_model_len, f"in [2, {limit}] for {model.name}"
        )


def _require(ok: bool, param: str, value: object, valid: str) -> None:
    if not ok:
        raise InvalidParameterError(f"{param} must be {valid}, got {value!r}", param=param)


def _batch_limits(on_gpu: bool, max_num_seqs: int | None, max_num_batched: int | None) -> tuple[int, int]:
    """Requests at a time and tokens in one step; what was not asked follows what was."""
    seqs, batched = (256, 2048) if on_gpu else (64, 512)
    if max_num_batched is None:
        max_num_batched = max(batched, max_num_seqs or 0)
    if max_num_seqs is None:
        max_num_seqs = min(seqs, max_num_batched)
    _require(max_num_seqs >= 1, "max_num_seqs", max_num_seqs, "at least 1")
    valid = f"at least max_num_seqs ({max_num_seqs})"
    _require(max_num_batched >= max_num_seqs, "max_num_batched_tokens", max_num_batched, valid)
    return max_num_seqs, max_num_batched


def _activation_bytes(model: ModelSpec, max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """Float32 hidden rows of one step, and two copies of the logits of every request."""
    hidden = max_num_batched_tokens * model.hidden_size * HIDDEN_COPIES * 4
    return hidden + max_num_seqs * model.vocab_size * 4 * 2


def _kv_bytes(
    room: _Room,
    wanted_tokens: int,
    context: int,
    block_size: int,
    block_bytes: int,
    asked_bytes: int | None,
    asked_len: int | None,
) -> int:
    """Bytes for the KV store, never more than there is room for."""
    if room.kv < block_bytes or room.weights + room.load_copy + room.overhead > room.budget:
        raise CapacityError(f"the model does not fit: {room.reckoning()}. {room.hint}")
    if asked_bytes is not None:
        if asked_bytes > room.kv:
            raise CapacityError(
                f"a KV store of {human(asked_bytes)} does not fit, {human(room.kv)} are left: "
                f"{room.reckoning()}"
            )
        return asked_bytes
    wanted = -(-wanted_tokens // block_size) * block_bytes
    if not room.on_gpu:
        wanted = min(wanted, int(room.available * CPU_KV_FRACTION))
    if asked_len is not None:
        wanted = max(wanted, -(-context // block_size) * block_bytes)
    return min(wanted, room.kv)


def _context(
    room: _Room, context: int, num_blocks: int, block_size: int, block_bytes: int, asked: int | None
) -> tuple[int, tuple[str, ...]]:
    """The context that the blocks hold, and a note if it is less than the model's."""
    capacity = num_blocks * block_size
    if capacity >= context:
        return context, ()
    least = asked or min(context, MIN_MODEL_LEN)
    if capacity < least:
        need = -(-least // block_size) * block_bytes
        raise CapacityError(
            f"one request of {least} tokens needs {human(need)} of KV, but only "
            f"{human(num_blocks * block_bytes)} ({capacity} tokens) fit: {room.reckoning()}. "
            "Use a smaller max_model_len or a larger KV store."
        )
    return capacity, (
        f"context shrunk from {context} to {capacity} tokens, which is what the KV store holds "
        f"(set max_model_len or the KV store's size to choose)",
    )
