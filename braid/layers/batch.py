"""The tensors of one step, built once by the runner and passed down as an argument.

Legend of shape suffixes, used in this floor and the kernels: T scheduled tokens over all sequences, S sequences,
B blocks of the longest table, D hidden size, H query heads, G KV heads, E head_dim, V vocabulary, N output features,
K input features, R rotated dimensions or latent rank, X experts, k experts per token, F expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Sequences laid out one after another; sequences ``[0, num_decodes)`` have exactly one new token each.

    Args:
        token_ids_T: int64.
        positions_T: int64, position of each token in its sequence.
        slot_mapping_T: int64, ``block_id * block_size + offset`` where the token's KV is written.
        query_start: S+1 offsets into T (half-open intervals), as Python ints and, for kernels, as int32
            ``query_start_S1`` on the CPU.
        context_lens: S lengths including the new tokens; as int32 ``context_lens_S`` on the CPU.
        block_tables_SB: int32, padded with 0, on the model's device.
        logit_rows: int64 rows of T whose logits are wanted, in the order of the works that sample.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    slot_mapping_T: Tensor
    query_start: list[int]
    query_start_S1: Tensor
    context_lens: list[int]
    context_lens_S: Tensor
    block_tables_SB: Tensor
    block_size: int
    num_decodes: int
    logit_rows: Tensor
