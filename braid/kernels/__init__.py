"""Compute kernels: ``import braid.kernels as ops``. A call goes to the fastest implementation that takes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braid.core.experts import ExpertLayout
from braid.kernels import reference, tape
from braid.kernels.loader import LibraryUnavailableError, open_library
from braid.kernels.native import Native
from braid.kernels.selfcheck import failures
from braid.kernels.tape import Tape, UnrecordableError

if TYPE_CHECKING:
    from braid.layers.batch import ForwardBatch


def _load() -> tuple[Native | None, str]:
    """The native kernels if they load and compute rightly, and what serves, in words."""
    try:
        native = Native(open_library())
    except LibraryUnavailableError as error:
        return None, f"torch ({error})"
    if failed := failures(native):
        reason = f"native {native.isa} library refused: wrong results from {', '.join(failed)}"
        logging.getLogger(__name__).warning("%s; computing with torch", reason)
        return None, f"torch ({reason})"
    return native, f"native {native.isa}"


_NATIVE, _DESCRIPTION = _load()


def describe() -> str:
    """What computes on the CPU: "native avx2", or "torch (why not native)"."""
    return _DESCRIPTION


def record(compute: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
    """Run ``compute``; returns the tape that runs it again and the tensor that each replay fills.

    Raises:
        UnrecordableError: ``compute`` needs more than native kernels.
    """
    if _NATIVE is None:
        raise UnrecordableError(describe())
    return tape.record(_NATIVE.native_library, compute)


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` with float32 accumulation, in x's dtype."""
    if _NATIVE is not None and x_TK.is_cpu:
        y_TN = _NATIVE.linear(x_TK, weight_NK, bias_N)
        if y_TN is not None:
            return y_TN
    return reference.linear(x_TK, weight_NK, bias_N)


def logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """``hidden @ weight.T`` in float32, never rounded to a narrower dtype: close candidates must not become ties."""
    if _NATIVE is not None and hidden_ND.is_cpu:
        logits_NV = _NATIVE.linear(hidden_ND.float(), weight_VD, None)
        if logits_NV is not None:
            return logits_NV
    return reference.logits(hidden_ND, weight_VD)


def head_linear(x_THK: Tensor, weight_HNK: Tensor) -> Tensor:
    """Each head's own ``x @ weight.T``, [T, H, N]; the weight may be a view of any strides."""
    return reference.head_linear(x_THK, weight_HNK)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension; the weight is float32."""
    if _NATIVE is not None and x_TD.is_cpu:
        y_TD = _NATIVE.rms_norm(x_TD, weight_D, eps)
        if y_TD is not None:
            return y_TD
    return reference.rms_norm(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual), x + residual)``."""
    if _NATIVE is not None and x_TD.is_cpu:
        both = _NATIVE.add_rms_norm(x_TD, residual_TD, weight_D, eps)
        if both is not None:
            return both
    return reference.add_rms_norm(x_TD, residual_TD, weight_D, eps)


def rope(
    q_THE: Tensor, k_TGE: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first R dimensions of each head; may work in place. cos and sin are float32 [T, R/2]."""
    if _NATIVE is not None and q_THE.is_cpu and _NATIVE.rope(q_THE, k_TGE, cos_TR2, sin_TR2, interleaved):
        return q_THE, k_TGE
    return reference.rope(q_THE, k_TGE, cos_TR2, sin_TR2, interleaved=interleaved)


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """``silu(gate) * up``; the gate is the first half of each row."""
    if _NATIVE is not None and gate_up_T2F.is_cpu:
        y_TF = _NATIVE.gate_mul(gate_up_T2F, gelu=False)
        if y_TF is not None:
            return y_TF
    return reference.silu_mul(gate_up_T2F)


def gelu_tanh_mul(gate_up_T2F: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``; the gate is the first half of each row."""
    if _NATIVE is not None and gate_up_T2F.is_cpu:
        y_TF = _NATIVE.gate_mul(gate_up_T2F, gelu=True)
        if y_TF is not None:
            return y_TF
    return reference.gelu_tanh_mul(gate_up_T2F)


def _store(x: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> None:
    if _NATIVE is None or not x.is_cpu or not _NATIVE.store(x, cache, slot_mapping_T):
        reference.write_latent(x, cache, slot_mapping_T)


def write_kv(k_TGE: Tensor, v_TGE: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping_T: Tensor) -> None:
    """Put each token's K and V into its slot of the caches [num_blocks, block_size, G, E], in the caches' dtype."""
    _store(k_TGE, k_cache, slot_mapping_T)
    _store(v_TGE, v_cache, slot_mapping_T)


def write_latent(latent_TR: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> None:
    """Put each token's latent into its slot of the cache [num_blocks, block_size, rank + rope]."""
    _store(latent_TR, cache, slot_mapping_T)


def paged_attention(
    q_THE: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention over paged caches that already hold the new tokens; [T, H, E].

    A query at position p sees positions in (p - window, p]; scores become ``softcap * tanh(scores / softcap)``.
    """
    if _NATIVE is not None and q_THE.is_cpu:
        out_THE = _NATIVE.paged_attention(q_THE, k_cache, v_cache, batch, scale, window, softcap)
        if out_THE is not None:
            return out_THE
    return reference.paged_attention(
        q_THE, k_cache, v_cache, batch, scale=scale, window=window, softcap=softcap
    )


def paged_attention_mla(
    q_latent_THR: Tensor, q_rope_THr: Tensor, cache: Tensor, batch: ForwardBatch, *, scale: float, rank: int
) -> Tensor:
    """Multi-head latent attention in its absorbed form; the attended latents [T, H, rank]."""
    return reference.paged_attention_mla(q_latent_THR, q_rope_THr, cache, batch, scale=scale, rank=rank)


def moe_ffn(
    x_TD: Tensor,
    expert_ids_Tk: Tensor,
    expert_weights_Tk: Tensor,
    gate_up_X2FD: Tensor,
    down_XDF: Tensor,
    *,
    act: str = "silu",
) -> Tensor:
    """Weighted sum of the chosen experts' gated MLPs; ``act`` is "silu" or "gelu_tanh"."""
    if _NATIVE is not None and x_TD.is_cpu:
        y_TD = _NATIVE.moe_ffn(x_TD, expert_ids_Tk, expert_weights_Tk, gate_up_X2FD, down_XDF, act)
        if y_TD is not None:
            return y_TD
    pairs_PD = reference.moe_pairs(x_TD, expert_ids_Tk, gate_up_X2FD, down_XDF, act=act)
    return combine_pairs(pairs_PD, expert_weights_Tk, x_TD.dtype)


def expert_pairs(
    x_TD: Tensor,
    ids_Tk: Tensor,
    arena_SB: Tensor,
    slots_X: Tensor,
    layout: ExpertLayout,
    pairs_PD: Tensor,
    *,
    act: str = "silu",
) -> None:
    """What the experts that have a slot make of their tokens: a part of `moe_ffn`, with experts as records.

    For every (token, choice) pair ``p = t * k + j`` whose expert ``e = ids[t, j]`` has ``slots[e] >= 0``, row p of
    ``pairs`` becomes the down-projected output of expert e, not yet weighted. Other rows stay as they are. A row's bits
    depend on x[t] and the record alone (on CPUs with bf16 products also on the number of the expert's tokens, where
    that is large): not on which other experts are computed in the same call. Once all rows are filled, `combine_pairs`
    gives what `moe_ffn` gives for experts of the same numbers, bit by bit.

    Args:
        ids_Tk: int64, experts' indices within the layer.
        arena_SB: uint8, one record (`braid.core.experts.ExpertLayout`) per slot.
        slots_X: int64, each expert's slot; negative: not to be computed now.
        pairs_PD: float32 [T * k, D].
        act: "silu" or "gelu_tanh".

    Raises:
        IndexError: an expert or a slot does not exist.
    """
    native = _NATIVE if x_TD.is_cpu else None
    if native is None or not native.expert_pairs(x_TD, ids_Tk, arena_SB, slots_X, layout, pairs_PD, act):
        reference.expert_pairs(x_TD, ids_Tk, arena_SB, slots_X, layout, pairs_PD, act=act)


def combine_pairs(pairs_PD: Tensor, weights_Tk: Tensor, dtype: torch.dtype) -> Tensor:
    """Each token's weighted sum [T, D] of its k rows, in the order of its choices; float32 until the end."""
    if _NATIVE is not None and pairs_PD.is_cpu:
        y_TD = _NATIVE.combine_pairs(pairs_PD, weights_Tk, dtype)
        if y_TD is not None:
            return y_TD
    return reference.combine_pairs(pairs_PD, weights_Tk, dtype)


def argmax(logits_NV: Tensor) -> Tensor:
    """Most likely token of each row, int64."""
    if _NATIVE is not None and logits_NV.is_cpu:
        ids_N = _NATIVE.argmax(logits_NV)
        if ids_N is not None:
            return ids_N
    return reference.argmax(logits_NV)
