"""Kernels of the native library on CPU tensors. A method returns None for a case that it does not take.

Arguments travel as one packed block of 8-byte fields per call (`native/*.h` declare the same fields in the same
order): one foreign call then costs well under a microsecond, and ctypes releases the GIL during it.

Every result row is independent, bit by bit, of the other rows in the batch, of chunking and of the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from braid.core.experts import FORMATS, ExpertLayout
from braid.kernels.loader import Function, Library

if TYPE_CHECKING:
    from braid.layers.batch import ForwardBatch

_Pack = Callable[..., bytes]

_LINEAR = Struct("14q").pack
_NORM = Struct("11qd").pack
_ROPE = Struct("13q").pack
_GATE = Struct("7q").pack
_SCATTER = Struct("9q").pack
_ARGMAX = Struct("6q").pack
_ATTENTION = Struct("20q2d").pack
_MOE = Struct("17q").pack
_PAIRS = Struct("24q").pack
_COMBINE = Struct("7q").pack

_IS_BF16 = {torch.bfloat16: 1, torch.float32: 0}

ONEDNN_ROWS = 32
"""With hardware bf16 products, oneDNN's are faster than widening to float32 from about so many rows on."""
MOE_TOKENS = 512
"""Tokens per call, which bounds the scratch for the experts' outputs."""
WIDTHS = {"generic": 4, "avx2": 8, "avx512": 16}
"""Floats per vector of each variant: attention takes head sizes that are a multiple of two."""


def _is_matrix(x: Tensor) -> bool:
    """Is ``x`` a matrix whose rows are contiguous, in a known dtype?"""
    return x.dtype in _IS_BF16 and x.dim() == 2 and x.stride()[1] == 1


def _is_heads(x: Tensor) -> bool:
    """Is ``x`` [T, H, E] with each token's heads side by side, in a known dtype?"""
    return x.dtype in _IS_BF16 and x.dim() == 3 and x.stride()[1:] == (x.shape[2], 1)


@lru_cache(maxsize=8)
def _layout_fields(layout: ExpertLayout) -> tuple[int, tuple[int, ...]]:
    """A record's bytes, and its layout as the library takes it (``experts.h``)."""
    D, F = layout.hidden, layout.size
    groups = (layout.group_of(D), layout.group_of(F)) if layout.is_quantised else (0, 0)
    offsets = (offset for offset, _ in layout.parts)
    return layout.record_bytes, (FORMATS.index(layout.format), D, F, *groups, *offsets)


class Native:
    """The kernels' calls into one variant of the library."""

    def __init__(self, library: Library) -> None:
        self.isa, self.scratch, self.native_library = library.isa, library.scratch, library
        functions = library.functions
        self._linear, self._norm, self._rope = functions["linear"], functions["rms_norm"], functions["rope"]
        self._gate, self._scatter, self._argmax = (
            functions["gate_mul"],
            functions["scatter"],
            functions["argmax"],
        )
        self._attention, self._moe = functions["paged_attention"], functions["moe_ffn"]
        self._pairs, self._combine = functions["expert_pairs"], functions["combine_pairs"]
        fast = self.isa == "avx512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._most_bf16_rows = ONEDNN_ROWS if fast else None

    def _run(self, function: Function, pack: _Pack, *fields: float) -> None:
        """Call a kernel that needs scratch, growing it when the kernel says so."""
        scratch = self.scratch
        status = function(pack(scratch.address, scratch.size, *fields))
        if status > 0:
            scratch.grow(status)
            status = function(pack(scratch.address, scratch.size, *fields))
        if status != 0:
            raise IndexError("kernel input out of range: a block, slot or expert id does not exist")

    def linear(self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor | None:
        """``x @ weight.T + bias``."""
        x_bf16, w_bf16 = _IS_BF16.get(x_TK.dtype), _IS_BF16.get(weight_NK.dtype)
        if x_bf16 is None or w_bf16 is None or x_TK.dim() != 2 or not weight_NK.is_contiguous():
            return None
        (T, K), N = x_TK.shape, weight_NK.shape[0]
        ldx, inner = x_TK.stride()
        if weight_NK.shape[1] != K or (inner != 1 and K > 1):
            return None
        if self._most_bf16_rows is not None and x_bf16 and w_bf16 and self._most_bf16_rows < T:
            return None
        bias, bias_bf16 = 0, 0
        if bias_N is not None:
            if bias_N.dtype not in _IS_BF16 or bias_N.shape != (N,) or not bias_N.is_contiguous():
                return None
            bias, bias_bf16 = bias_N.data_ptr(), _IS_BF16[bias_N.dtype]
        y_TN = x_TK.new_empty((T, N))
        self._run(
            self._linear, _LINEAR, x_TK.data_ptr(), weight_NK.data_ptr(), bias, y_TN.data_ptr(),
            T, N, K, ldx, N, x_bf16, w_bf16, bias_bf16,
        )  # fmt: skip
        return y_TN

    def rms_norm(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        """Norm over the last dimension of [T, D], or per head of [T, H, D]."""
        takes = _is_matrix(x) or _is_heads(x)
        if not takes or weight_D.dtype is not torch.float32 or not weight_D.is_contiguous():
            return None
        T, D, H = x.shape[0], x.shape[-1], 1 if x.dim() == 2 else x.shape[1]
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._norm(
            _NORM(
                x.data_ptr(),
                0,
                weight_D.data_ptr(),
                y.data_ptr(),
                0,
                T,
                H,
                D,
                x.stride()[0],
                0,
                _IS_BF16[x.dtype],
                eps,
            )
        )
        return y

    def add_rms_norm(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor] | None:
        """``(rms_norm(x + residual), x + residual)``."""
        takes = _is_matrix(x_TD) and _is_matrix(residual_TD) and x_TD.dtype is residual_TD.dtype
        if not takes or weight_D.dtype is not torch.float32 or not weight_D.is_contiguous():
            return None
        T, D = x_TD.shape
        y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
        total_TD = torch.empty_like(y_TD)
        self._norm(
            _NORM(
                x_TD.data_ptr(),
                residual_TD.data_ptr(),
                weight_D.data_ptr(),
                y_TD.data_ptr(),
                total_TD.data_ptr(),
                T,
                1,
                D,
                x_TD.stride()[0],
                residual_TD.stride()[0],
                _IS_BF16[x_TD.dtype],
                eps,
            )
        )
        return y_TD, total_TD

    def rope(self, q_THE: Tensor, k_TGE: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, interleaved: bool) -> bool:
        """Rotate in place."""
        takes = _is_heads(q_THE) and _is_heads(k_TGE) and q_THE.dtype is k_TGE.dtype
        if not takes or cos_TR2.dtype is not torch.float32 or sin_TR2.dtype is not torch.float32:
            return False
        if not (cos_TR2.is_contiguous() and sin_TR2.is_contiguous()):
            return False
        T, H, E = q_THE.shape
        self._rope(
            _ROPE(
                q_THE.data_ptr(),
                k_TGE.data_ptr(),
                cos_TR2.data_ptr(),
                sin_TR2.data_ptr(),
                T,
                H,
                k_TGE.shape[1],
                E,
                2 * cos_TR2.shape[1],
                q_THE.stride()[0],
                k_TGE.stride()[0],
                interleaved,
                _IS_BF16[q_THE.dtype],
            )
        )
        return True

    def gate_mul(self, gate_up_T2F: Tensor, *, gelu: bool) -> Tensor | None:
        """``act(gate) * up`` with SiLU or tanh-approximated GELU; rounds once, at the end."""
        if not _is_matrix(gate_up_T2F):
            return None
        T, F = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
        y_TF = gate_up_T2F.new_empty((T, F))
        self._gate(
            _GATE(
                gate_up_T2F.data_ptr(),
                y_TF.data_ptr(),
                T,
                F,
                gate_up_T2F.stride()[0],
                gelu,
                _IS_BF16[y_TF.dtype],
            )
        )
        return y_TF

    def store(self, x: Tensor, cache: Tensor, slot_mapping_T: Tensor) -> bool:
        """Put row t of ``x`` ([T, R] or [T, G, E]) into slot ``slot_mapping[t]`` of the cache."""
        takes = (_is_heads(x) or _is_matrix(x)) and cache.dtype in _IS_BF16 and cache.is_contiguous()
        if not takes or slot_mapping_T.dtype is not torch.int64 or not slot_mapping_T.is_contiguous():
            return False
        T, slots = x.shape[0], cache.shape[0] * cache.shape[1]
        width = cache.stride(1)
        if width != (x.shape[1] if x.dim() == 2 else x.shape[1] * x.shape[2]):
            return False
        status = self._scatter(
            _SCATTER(
                x.data_ptr(),
                cache.data_ptr(),
                slot_mapping_T.data_ptr(),
                T,
                width,
                x.stride()[0],
                slots,
                _IS_BF16[x.dtype],
                _IS_BF16[cache.dtype],
            )
        )
        if status != 0:
            raise IndexError(f"slot_mapping holds a slot outside [0, {slots})")
        return True

    def argmax(self, logits_NV: Tensor) -> Tensor | None:
        """First largest entry of each row."""
        if not _is_matrix(logits_NV):
            return None
        ids_N = torch.empty(logits_NV.shape[0], dtype=torch.int64)
        self._argmax(
            _ARGMAX(
                logits_NV.data_ptr(),
                ids_N.data_ptr(),
                *logits_NV.shape,
                logits_NV.stride()[0],
                _IS_BF16[logits_NV.dtype],
            )
        )
        return ids_N

    def paged_attention(
        self,
        q_THE: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: ForwardBatch,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor | None:
        """Causal grouped-query attention over paged caches, decodes and prefills alike."""
        kv_bf16 = _IS_BF16.get(k_cache.dtype)
        if not _is_heads(q_THE) or kv_bf16 is None or k_cache.dtype is not v_cache.dtype:
            return None
        T, H, E = q_THE.shape
        num_blocks, block_size, G, _ = k_cache.shape
        tables = batch.block_tables_SB
        same = k_cache.shape == v_cache.shape and k_cache.shape[3] == E
        takes = same and k_cache.is_contiguous() and v_cache.is_contiguous() and tables.dtype is torch.int32
        if not takes or E % (2 * WIDTHS[self.isa]) or H % G or not tables.is_contiguous():
            return None
        out_THE = q_THE.new_empty((T, H, E))
        self._run(
            self._attention, _ATTENTION, q_THE.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out_THE.data_ptr(),
            batch.query_start_S1.data_ptr(), batch.context_lens_S.data_ptr(), tables.data_ptr(),
            *tables.shape[:1], H, G, E, q_THE.stride()[0], tables.shape[1], num_blocks, block_size, window or 0,
            _IS_BF16[q_THE.dtype], kv_bf16, scale, softcap or 0.0,
        )  # fmt: skip
        return out_THE

    def _leaves_experts(self, num_experts: int, ids_Tk: Tensor) -> bool:
        """Is oneDNN faster with bf16 experts of so many rows?"""
        most = self._most_bf16_rows
        return most is not None and most * num_experts < ids_Tk.numel()

    def moe_ffn(
        self,
        x_TD: Tensor,
        ids_Tk: Tensor,
        weights_Tk: Tensor,
        gate_up_X2FD: Tensor,
        down_XDF: Tensor,
        act: str,
    ) -> Tensor | None:
        """Weighted sum of the chosen experts' gated MLPs; activations stay float32 between the two products."""
        w_bf16 = _IS_BF16.get(gate_up_X2FD.dtype)
        if w_bf16 is None or gate_up_X2FD.dtype is not down_XDF.dtype or act not in ("silu", "gelu_tanh"):
            return None
        takes = _is_matrix(x_TD) and gate_up_X2FD.is_contiguous() and down_XDF.is_contiguous()
        if not takes or ids_Tk.dtype is not torch.int64 or weights_Tk.dtype is not torch.float32:
            return None
        if w_bf16 and self._leaves_experts(len(down_XDF), ids_Tk):
            return None
        y_TD = x_TD.new_empty(x_TD.shape)
        X, D, F = down_XDF.shape
        for start in range(0, len(x_TD), MOE_TOKENS):
            part = slice(start, start + MOE_TOKENS)
            x, ids, weights = x_TD[part], ids_Tk[part].contiguous(), weights_Tk[part].contiguous()
            self._run(
                self._moe, _MOE, x.data_ptr(), ids.data_ptr(), weights.data_ptr(), gate_up_X2FD.data_ptr(),
                down_XDF.data_ptr(), y_TD[part].data_ptr(), len(x), ids.shape[1], X, F, D, x.stride()[0],
                act == "gelu_tanh", _IS_BF16[x.dtype], w_bf16,
            )  # fmt: skip
        return y_TD

    def expert_pairs(
        self,
        x_TD: Tensor,
        ids_Tk: Tensor,
        arena_SB: Tensor,
        slots_X: Tensor,
        layout: ExpertLayout,
        pairs_PD: Tensor,
        act: str,
    ) -> bool:
        """Fill the rows of pairs whose expert has a slot; activations stay float32 between the two products."""
        if act not in ("silu", "gelu_tanh") or not (_is_matrix(x_TD) and x_TD.shape[1] == layout.hidden):
            return False
        record_bytes, fields = _layout_fields(layout)
        is_arena = arena_SB.dtype is torch.uint8 and arena_SB.dim() == 2 and arena_SB.stride()[1] == 1
        if not is_arena or not arena_SB.is_cpu or arena_SB.shape[1] < record_bytes:
            return False
        if ids_Tk.dtype is not torch.int64 or slots_X.dtype is not torch.int64 or not slots_X.is_contiguous():
            return False
        is_pairs = pairs_PD.dtype is torch.float32 and pairs_PD.is_contiguous()
        if not is_pairs or pairs_PD.shape != (ids_Tk.numel(), layout.hidden) or len(ids_Tk) != len(x_TD):
            return False
        if layout.format == "bfloat16" and self._leaves_experts(len(slots_X), ids_Tk):
            return False
        k = ids_Tk.shape[1]
        for start in range(0, len(x_TD), MOE_TOKENS):
            x, ids = x_TD[start : start + MOE_TOKENS], ids_Tk[start : start + MOE_TOKENS].contiguous()
            self._run(
                self._pairs, _PAIRS, x.data_ptr(), ids.data_ptr(), arena_SB.data_ptr(), slots_X.data_ptr(),
                pairs_PD[start * k :].data_ptr(), len(x), k, len(slots_X), len(arena_SB), x.stride()[0],
                arena_SB.stride()[0], act == "gelu_tanh", _IS_BF16[x.dtype], *fields,
            )  # fmt: skip
        return True

    def combine_pairs(self, pairs_PD: Tensor, weights_Tk: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Weighted sum of each token's rows in the order of its choices."""
        takes = pairs_PD.dtype is torch.float32 and weights_Tk.dtype is torch.float32 and dtype in _IS_BF16
        if not takes or not pairs_PD.is_contiguous() or len(pairs_PD) != weights_Tk.numel():
            return None
        (T, k), D, weights = weights_Tk.shape, pairs_PD.shape[1], weights_Tk.contiguous()
        y_TD = pairs_PD.new_empty((T, D), dtype=dtype)
        self._combine(
            _COMBINE(pairs_PD.data_ptr(), weights.data_ptr(), y_TD.data_ptr(), T, k, D, _IS_BF16[dtype])
        )
        return y_TD
