"""Every kernel in plain torch operations: the oracle of the native ones, and what runs wherever those do not.

Shape suffixes: see `braid.layers.batch`. L context length, R query heads per KV head, X experts, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from braid.core.experts import ExpertLayout

if TYPE_CHECKING:
    from braid.layers.batch import ForwardBatch

WIDEN_MIN_ROWS = 4
"""From this many rows on, widening a bf16 weight to float32 pays on a CPU without bf16 arithmetic."""
WIDEN_NUMBERS = 1 << 19
"""Weight numbers widened at a time: 2 MiB of scratch, which stays in the cache until it is multiplied."""
SCORE_NUMBERS = 1 << 24
"""Attention scores held at a time: 64 MiB in float32."""


@lru_cache(maxsize=1)
def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _narrow_on_cpu(x: Tensor) -> bool:
    """Is ``x`` bf16 on a CPU that has to emulate bf16 products?"""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_has_bf16()


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` with float32 accumulation, in x's dtype."""
    if len(x_TK) >= WIDEN_MIN_ROWS and _narrow_on_cpu(x_TK):
        return _widened_linear(x_TK, weight_NK, bias_N)
    return functional.linear(x_TK, weight_NK, bias_N)


def _widened_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    wide_x, step = x_TK.float(), max(1, WIDEN_NUMBERS // weight_NK.shape[1])
    y_TN = x_TK.new_empty(len(x_TK), len(weight_NK))
    for start in range(0, len(weight_NK), step):
        rows = slice(start, start + step)
        bias = None if bias_N is None else bias_N[rows].float()
        y_TN[:, rows] = functional.linear(wide_x, weight_NK[rows].float(), bias)
    return y_TN


def head_linear(x_THK: Tensor, weight_HNK: Tensor) -> Tensor:
    """Each head's own ``x @ weight.T``, [T, H, N]; the weight may be a view of any strides."""
    x_HTK, weight_HKN = x_THK.transpose(0, 1), weight_HNK.transpose(1, 2)
    if len(x_THK) >= WIDEN_MIN_ROWS and _narrow_on_cpu(x_THK):
        x_HTK, weight_HKN = x_HTK.float(), weight_HKN.float()
    return torch.bmm(x_HTK, weight_HKN).transpose(0, 1).to(x_THK.dtype)


def logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """``hidden @ weight.T`` in float32, never rounded to a narrower dtype."""
    if hidden_ND.is_cuda and hidden_ND.dtype is not torch.float32:
        return torch.mm(hidden_ND, weight_VD.t(), out_dtype=torch.float32)
    step = max(1, WIDEN_NUMBERS // weight_VD.shape[1])
    wide_ND = hidden_ND.float()
    return torch.cat([wide_ND @ part.float().t() for part in torch.split(weight_VD, step)], dim=-1)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (arXiv:1910.07467), computed in float32."""
    return functional.rms_norm(x_TD.float(), weight_D.shape, weight_D, eps).to(x_TD.dtype)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual), x + residual)``."""
    residual_TD = x_TD + residual_TD
    return rms_norm(residual_TD, weight_D, eps), residual_TD


def _rotate(x_THE: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, interleaved: bool) -> Tensor:
    half = cos_T1R.shape[-1]
    turned = x_THE[..., : 2 * half].float()
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., :half], turned[..., half:]
    new_a, new_b = a * cos_T1R - b * sin_T1R, b * cos_T1R + a * sin_T1R
    out = torch.stack((new_a, new_b), -1).flatten(-2) if interleaved else torch.cat((new_a, new_b), -1)
    out = out.to(x_THE.dtype)
    return out if 2 * half == x_THE.shape[-1] else torch.cat((out, x_THE[..., 2 * half :]), -1)


def rope(
    q_THE: Tensor, k_TGE: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate the first R dimensions of each head (arXiv:2104.09864).

    Args:
        cos_TR2, sin_TR2: float32 [T, R/2], the rows of each token's position.
        interleaved: pairs are (2i, 2i+1); otherwise (i, i + R/2).
    """
    cos, sin = cos_TR2.unsqueeze(1), sin_TR2.unsqueeze(1)
    return _rotate(q_THE, cos, sin, interleaved), _rotate(k_TGE, cos, sin, interleaved)


def silu_mul(gate_up_T2F: Tensor) -> Tensor:
    """``silu(gate) * up``; the gate is the first half of each row."""
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_tanh_mul(gate_up_T2F: Tensor) -> Tensor:
    """``gelu_tanh(gate) * up``; the gate is the first half of each row."""
    gate, up = gate_up_T2F.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


def _store(x: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> None:
    cache.flatten(0, 1).index_copy_(0, slot_mapping_T, x.to(cache.dtype))


def write_kv(k_TGE: Tensor, v_TGE: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping_T: Tensor) -> None:
    """Put each token's K and V into its slot of the caches [num_blocks, block_size, G, E], in the caches' dtype."""
    _store(k_TGE, k_cache, slot_mapping_T)
    _store(v_TGE, v_cache, slot_mapping_T)


def write_latent(latent_TR: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> None:
    """Put each token's latent into its slot of the cache [num_blocks, block_size, rank + rope]."""
    _store(latent_TR, cache, slot_mapping_T)


def _attend(
    q_SQGRE: Tensor, k_SLGE: Tensor, v_SLGE: Tensor, seen_SQL: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Masked softmax attention of padded sequences. All query heads of a KV head are rows of one product."""
    S, Q, G, R, E = q_SQGRE.shape
    q = q_SQGRE.permute(0, 2, 3, 1, 4).reshape(S, G, R * Q, E)
    k, v = k_SLGE.transpose(1, 2), v_SLGE.transpose(1, 2)
    seen = seen_SQL.unsqueeze(1).expand(S, R, Q, -1).reshape(S, 1, R * Q, -1)
    if softcap is None and v.shape[-1] == E:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    else:
        out = _attend_plainly(q, k, v, seen, scale, softcap)
    return out.view(S, G, R, Q, -1).permute(0, 3, 1, 2, 4)


def _attend_plainly(
    q_SGNE: Tensor, k_SGLE: Tensor, v_SGLE: Tensor, seen: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """What torch's fused attention lacks: soft-capping, and values narrower than keys."""
    scores = (q_SGNE @ k_SGLE.transpose(2, 3)).float().mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    return scores.masked_fill_(~seen, float("-inf")).softmax(-1).to(v_SGLE.dtype) @ v_SGLE


def _gather(cache: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., n] block ids -> [..., n * block_size, *trailing] in ``dtype``."""
    rows = cache.index_select(0, blocks.flatten().long())
    return rows.view(*blocks.shape[:-1], -1, *cache.shape[2:]).to(dtype)


def _seen(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a query may look at: none after itself, and none ``window`` or more before itself."""
    distance = positions.unsqueeze(-1) - keys
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


class _Paged:
    """Attention over one layer's cache; ``caches`` is (k, v), or one latent cache that starts with V."""

    def __init__(self, caches: tuple[Tensor, ...], batch: ForwardBatch, rank: int | None, dtype: torch.dtype):
        self.caches, self.batch, self.rank, self.dtype = caches, batch, rank, dtype

    def keys_values(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        k = _gather(self.caches[0], blocks, self.dtype)
        if self.rank is None:
            return k, _gather(self.caches[1], blocks, self.dtype)
        return k.unsqueeze(-2), k[..., : self.rank].unsqueeze(-2)

    def first_block(self, position: int, window: int | None) -> int:
        return 0 if window is None else max(0, position - window + 1) // self.batch.block_size

    def decodes(
        self, q_SGRE: Tensor, rows: slice, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        batch = self.batch
        lens = batch.context_lens[rows]
        first = min(self.first_block(length - 1, window) for length in lens)
        last = -(-max(lens) // batch.block_size)
        k, v = self.keys_values(batch.block_tables_SB[rows, first:last])
        keys = torch.arange(first * batch.block_size, last * batch.block_size, device=k.device)
        seen = _seen(batch.positions_T[rows, None], keys, window)
        # What lies behind a sequence's end belongs to others. It is masked, but NaN outlives a mask.
        tail = min(lens) - first * batch.block_size
        foreign = (keys > batch.positions_T[rows, None])[:, tail:, None, None]
        k[:, tail:].masked_fill_(foreign, 0.0)
        v[:, tail:].masked_fill_(foreign, 0.0)
        return _attend(q_SGRE.unsqueeze(1), k, v, seen, scale, softcap).squeeze(1)

    def prefill(
        self, s: int, q_QGRE: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Tiles of queries, so that scores stay within SCORE_NUMBERS however long the context is."""
        batch, num_queries = self.batch, len(q_QGRE)
        size, context = batch.block_size, batch.context_lens[s]
        start = context - num_queries
        first = self.first_block(start, window)
        k, v = self.keys_values(batch.block_tables_SB[s : s + 1, first : -(-context // size)])
        tile = max(1, SCORE_NUMBERS // (k.shape[1] * q_QGRE.shape[1] * q_QGRE.shape[2]))
        out = []
        for a in range(0, num_queries, tile):
            b = min(a + tile, num_queries)
            lo = self.first_block(start + a, window) * size
            span = slice(lo - first * size, start + b - first * size)
            positions = torch.arange(start + a, start + b, device=k.device)
            seen = _seen(positions, torch.arange(lo, start + b, device=k.device), window)
            out.append(_attend(q_QGRE[None, a:b], k[:, span], v[:, span], seen[None], scale, softcap)[0])
        return out[0] if len(out) == 1 else torch.cat(out)


DECODE_PADDING = 2
"""Decodes whose lengths differ by more than this factor are attended in separate padded groups."""


def _decode_groups(lens: list[int], numbers_per_token: int) -> list[slice]:
    """Runs of neighbouring sequences that share one padded gather of bounded size."""
    groups, start = [], 0
    for end in range(1, len(lens) + 1):
        run = lens[start : end + 1]
        full = len(run) * max(run) * numbers_per_token > SCORE_NUMBERS
        uneven = max(run) > DECODE_PADDING * min(run) and max(run) > 256
        if end == len(lens) or full or uneven:
            groups.append(slice(start, end))
            start = end
    return groups


def _paged(
    q_TGRE: Tensor,
    caches: tuple[Tensor, ...],
    batch: ForwardBatch,
    rank: int | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    dtype = torch.float32 if _narrow_on_cpu(q_TGRE) else q_TGRE.dtype
    paged, q_TGRE = _Paged(caches, batch, rank, dtype), q_TGRE.to(dtype)
    per_token = caches[0][0, 0].numel()
    parts = [
        paged.decodes(q_TGRE[rows], rows, scale, window, softcap)
        for rows in _decode_groups(batch.context_lens[: batch.num_decodes], per_token)
    ]
    for s in range(batch.num_decodes, len(batch.context_lens)):
        rows = slice(batch.query_start[s], batch.query_start[s + 1])
        parts.append(paged.prefill(s, q_TGRE[rows], scale, window, softcap))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    """Causal grouped-query attention over caches [num_blocks, block_size, G, E] that already hold the new tokens.

    Args:
        window: a query at position p sees positions in (p - window, p]; None sees all up to p.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
    """
    T, H, E = q_THE.shape
    G = k_cache.shape[2]
    q_TGRE = q_THE.view(T, G, H // G, E)
    out = _paged(q_TGRE, (k_cache, v_cache), batch, None, scale, window, softcap)
    return out.reshape(T, H, E).to(q_THE.dtype)


def paged_attention_mla(
    q_latent_THR: Tensor, q_rope_THr: Tensor, cache: Tensor, batch: ForwardBatch, *, scale: float, rank: int
) -> Tensor:
    """Multi-head latent attention in its absorbed form (arXiv:2405.04434, 2.1): every head reads the same latents.

    Returns: the attended latents [T, H, rank]; the caller applies the value projection.
    """
    q_T1HE = torch.cat((q_latent_THR, q_rope_THr), -1).unsqueeze(1)
    out = _paged(q_T1HE, (cache,), batch, rank, scale, None, None)
    return out.squeeze(1).to(q_latent_THR.dtype)


def expert_weights(record_B: Tensor, layout: ExpertLayout) -> tuple[Tensor, Tensor]:
    """gate_up [2F, D] and down [D, F] of one expert's record (uint8); float32 if the record is quantised."""
    parts = [record_B[offset : offset + size] for offset, size in layout.parts]
    D, F = layout.hidden, layout.size
    return _matrix(parts[0], parts[1], 2 * F, D, layout), _matrix(parts[2], parts[3], D, F, layout)


def _matrix(numbers: Tensor, scales: Tensor, rows: int, columns: int, layout: ExpertLayout) -> Tensor:
    if not layout.is_quantised:
        return numbers.view(getattr(torch, layout.format)).view(rows, columns)
    groups = columns // layout.group_of(columns)
    if layout.format == "int8":
        wide = numbers.view(torch.int8).float()
    else:
        halves = numbers.view(-1, 1, 16)
        wide = torch.cat((halves & 15, halves >> 4), 1).float() - 8.0
    # A product of so few bits is exact: the weights are the same numbers wherever they are made.
    return (wide.view(rows, groups, -1) * scales.view(torch.bfloat16).float().view(rows, groups, 1)).flatten(
        1
    )


def _fill_pairs(
    x_TD: Tensor,
    ids_Tk: Tensor,
    pairs_PD: Tensor,
    num_experts: int,
    weights_of: Callable[[int], tuple[Tensor, Tensor] | None],
    act: str,
) -> None:
    """Row ``t * k + j`` becomes what expert ``ids[t, j]`` makes of x[t], for experts that have weights."""
    gated = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}[act]
    order = ids_Tk.flatten().argsort(stable=True)
    counts = torch.bincount(ids_Tk.flatten(), minlength=num_experts).tolist()
    if len(counts) > num_experts:
        raise IndexError(f"expert {len(counts) - 1} does not exist; there are {num_experts}")
    for expert, rows in enumerate(torch.split(order, counts)):
        weights = weights_of(expert) if len(rows) else None
        if weights is not None:
            gate_up, down = (weight.to(x_TD.dtype) for weight in weights)
            hidden = gated(linear(x_TD[rows // ids_Tk.shape[1]], gate_up))
            pairs_PD[rows] = linear(hidden, down).float()


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
    """Fill the rows of (token, choice) pairs whose expert has a slot; see `braid.kernels.expert_pairs`.

    Weights take part in the activations' dtype.
    """
    slots = slots_X.tolist()

    def weights_of(expert: int) -> tuple[Tensor, Tensor] | None:
        return expert_weights(arena_SB[slots[expert]], layout) if slots[expert] >= 0 else None

    _fill_pairs(x_TD, ids_Tk, pairs_PD, len(slots), weights_of, act)


def combine_pairs(pairs_PD: Tensor, weights_Tk: Tensor, dtype: torch.dtype) -> Tensor:
    """Weighted sum of each token's rows in the order of its choices, in float32 until the end."""
    rows_TkD = pairs_PD.view(*weights_Tk.shape, -1)
    total_TD = torch.zeros_like(rows_TkD[:, 0])
    for choice in range(weights_Tk.shape[1]):
        total_TD = rows_TkD[:, choice] * weights_Tk[:, choice, None] + total_TD
    return total_TD.to(dtype)


def moe_pairs(
    x_TD: Tensor, expert_ids_Tk: Tensor, gate_up_X2FD: Tensor, down_XDF: Tensor, *, act: str = "silu"
) -> Tensor:
    """Each (token, choice) pair's row before weighting, float32 [T * k, D]."""
    pairs_PD = x_TD.new_empty(expert_ids_Tk.numel(), x_TD.shape[1], dtype=torch.float32)
    stacked = list(zip(gate_up_X2FD, down_XDF, strict=True))
    _fill_pairs(x_TD, expert_ids_Tk, pairs_PD, len(stacked), stacked.__getitem__, act)
    return pairs_PD


def moe_ffn(
    x_TD: Tensor,
    expert_ids_Tk: Tensor,
    expert_weights_Tk: Tensor,
    gate_up_X2FD: Tensor,
    down_XDF: Tensor,
    *,
    act: str = "silu",
) -> Tensor:
    """Sum of the chosen experts' gated MLPs, weighted, accumulated in float32 in the order of the choices.

    Args:
        expert_ids_Tk: int64, k different experts per token.
        expert_weights_Tk: float32.
        act: "silu" or "gelu_tanh".
    """
    pairs_PD = moe_pairs(x_TD, expert_ids_Tk, gate_up_X2FD, down_XDF, act=act)
    return combine_pairs(pairs_PD, expert_weights_Tk, x_TD.dtype)


def argmax(logits_NV: Tensor) -> Tensor:
    """Most likely token of each row, int64; the lowest id wins a tie."""
    return logits_NV.argmax(-1)
