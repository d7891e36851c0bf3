"""What is asked of prompts themselves: how likely their tokens were, and vectors made of their hidden states.

Shapes: N rows, V vocabulary, D hidden size, K alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.core.request import TokenLogprobs
from braid.core.step import ScoreSpec
from braid.models.decoder import CausalLM

MAX_LOGITS_BYTES = 32 << 20
"""Memory of the logits of one slice of rows."""


def score(model: CausalLM, hidden_ND: Tensor, spec: ScoreSpec) -> list[TokenLogprobs]:
    """Weigh ``spec.token_ids``, each by the hidden state of the token before it.

    Raises:
        ArithmeticError: the model's logits are not finite.
    """
    vocab_size = (model.embedding if model.head is None else model.head).weight.shape[0]
    num_rows = max(1, MAX_LOGITS_BYTES // (4 * vocab_size))
    found: list[TokenLogprobs] = []
    for begin in range(0, len(spec.token_ids), num_rows):
        token_ids = spec.token_ids[begin : begin + num_rows]
        logits_NV = model.logits(hidden_ND[begin : begin + len(token_ids)])
        found += _weigh(logits_NV, token_ids, spec.num_top)
    return found


def _weigh(logits_NV: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    norm_N1 = torch.logsumexp(logits_NV, dim=-1, keepdim=True)
    if not bool(torch.isfinite(norm_N1).all()):
        raise ArithmeticError("the model's logits are not finite")
    ids_N1 = torch.tensor(token_ids, device=logits_NV.device).unsqueeze(1)
    chosen_N1 = logits_NV.gather(1, ids_N1)
    rank_N = (logits_NV > chosen_N1).sum(-1) + 1
    top_NK, top_ids_NK = torch.topk(logits_NV, min(num_top, logits_NV.shape[1]), dim=-1)
    rows = zip(
        token_ids,
        (chosen_N1 - norm_N1).squeeze(1).tolist(),
        rank_N.tolist(),
        top_ids_NK.tolist(),
        (top_NK - norm_N1).tolist(),
        strict=True,
    )
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids, values, strict=True)))
        for token, logprob, rank, ids, values in rows
    ]


def pool(hidden_ND: Tensor, pooling: str) -> list[float]:
    """The last row, or the sum of all rows, as D numbers."""
    vector_D = hidden_ND[-1] if pooling == "last" else hidden_ND.sum(0, dtype=torch.float64)
    values: list[float] = vector_D.tolist()
    return values
