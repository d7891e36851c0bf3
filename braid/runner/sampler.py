"""From logits to tokens. A token depends on its own row and its own random stream only, never on the batch.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import braid.kernels as ops
from braid.core.request import TokenLogprobs
from braid.core.step import SampledToken, SampleSpec

_FIRST_CANDIDATES = 256
"""Top-p and min-p look at this many candidates before they pay for sorting the whole vocabulary."""

Row = Callable[[Tensor, SampleSpec, "Tensor | None"], SampledToken]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of the request's seed and the output position."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(
    logits_NV: Tensor,
    specs: Sequence[SampleSpec],
    masks: Sequence[Tensor | None] | None = None,
    *,
    row: Row | None = None,
) -> list[SampledToken | Exception]:
    """Choose one token per row.

    Args:
        logits_NV: float32, one row per spec. Rows with adjustments are changed in place.
        masks: per row a bool mask_V that is True where a token is forbidden, or None.
        row: chooses for a row that needs more than its largest logit; ``sample_row`` if not given.

    Returns:
        Per row the token, or the exception that this row alone caused.
    """
    masks = masks or [None] * len(specs)
    if all(_is_plain(spec) for spec in specs):
        for logits_V, mask_V in zip(logits_NV, masks, strict=True):
            _forbid(logits_V, mask_V)
        return _argmax(logits_NV)
    results: list[SampledToken | Exception] = []
    for logits_V, spec, mask_V in zip(logits_NV, specs, masks, strict=True):
        try:
            results.append((row or sample_row)(logits_V, spec, mask_V))
        except Exception as error:  # the fault wall: one row's fault is one request's error
            results.append(error)
    return results


def _is_plain(spec: SampleSpec) -> bool:
    params = spec.params
    return (
        params.greedy
        and params.logprobs is None
        and not params.has_penalties
        and not params.logit_bias
        and not spec.banned_token_ids
    )


def _argmax(logits_NV: Tensor) -> list[SampledToken | Exception]:
    ids_N = ops.argmax(logits_NV)
    best_N = logits_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)
    return [
        SampledToken(token) if finite else ArithmeticError("the model's logits are not finite")
        for token, finite in zip(ids_N.tolist(), torch.isfinite(best_N).tolist(), strict=True)
    ]


def _forbid(logits_V: Tensor, mask_V: Tensor | None) -> None:
    """What a mask does not reach is forbidden, too."""
    if mask_V is not None:
        size = min(mask_V.numel(), logits_V.numel())
        logits_V[:size].masked_fill_(mask_V[:size], -torch.inf)
        logits_V[size:] = -torch.inf


def sample_row(logits_V: Tensor, spec: SampleSpec, mask_V: Tensor | None = None) -> SampledToken:
    """Choose one token; changes ``logits_V``.

    Raises:
        ArithmeticError: the logits are not finite.
    """
    params = spec.params
    raw_V = logits_V.clone() if params.logprobs is not None else None
    _forbid(logits_V, mask_V)
    _adjust(logits_V, spec)
    if not torch.isfinite(logits_V.max()):
        raise ArithmeticError("the model's logits are not finite")
    token = int(logits_V.argmax()) if params.greedy else _draw(logits_V, spec)
    if raw_V is None or params.logprobs is None:
        return SampledToken(token)
    return SampledToken(token, _logprobs(raw_V, token, params.logprobs))


def _adjust(logits_V: Tensor, spec: SampleSpec) -> None:
    """Penalties, bias and banned tokens, in the order of vLLM's sampler."""
    params = spec.params
    device = logits_V.device
    if params.has_penalties:
        _penalise(logits_V, spec)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias.keys()), device=device)
        logits_V[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits_V.dtype, device=device)
    if spec.banned_token_ids:
        _ban(logits_V, torch.tensor(spec.banned_token_ids, device=device), params.constraint is not None)


def _ban(logits_V: Tensor, ids: Tensor, constrained: bool) -> None:
    """A grammar that allows nothing but banned tokens wins over the ban."""
    before = logits_V[ids]
    logits_V[ids] = -torch.inf
    if constrained and bool(logits_V.max() == -torch.inf):
        logits_V[ids] = before


def _penalise(logits_V: Tensor, spec: SampleSpec) -> None:
    params = spec.params
    history = torch.tensor(spec.token_ids, device=logits_V.device)
    if params.repetition_penalty != 1:
        seen = torch.unique(history)
        values = logits_V[seen]
        scale = params.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / scale, values * scale)
    if params.presence_penalty == 0 and params.frequency_penalty == 0:
        return
    output, counts = torch.unique(history[spec.num_prompt_tokens :], return_counts=True)
    logits_V[output] -= params.frequency_penalty * counts + params.presence_penalty


def _draw(logits_V: Tensor, spec: SampleSpec) -> int:
    """Inverse-CDF draw over the kept candidates, ordered by probability."""
    params = spec.params
    # The largest logit is subtracted first, so that no temperature, however small, makes infinities.
    probs_V = torch.softmax((logits_V.double() - logits_V.max()) / params.temperature, dim=-1)
    random = uniform(spec.seed, len(spec.token_ids) - spec.num_prompt_tokens)
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        cumulative = probs_V.cumsum(0)
        ids = None
    else:
        kept, ids = _candidates(probs_V, params.top_k, params.top_p, params.min_p)
        cumulative = kept.cumsum(0)
    target = random * float(cumulative[-1])
    index = int(
        torch.searchsorted(
            cumulative, torch.tensor(target, dtype=torch.float64, device=cumulative.device), right=True
        )
    )
    index = min(index, cumulative.numel() - 1)
    return index if ids is None else int(ids[index])


def _candidates(probs_V: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """The probabilities that survive top-k, then top-p, then min-p, in falling order, and their ids."""
    vocab = probs_V.numel()
    limit = min(top_k or vocab, vocab)
    probs, ids = torch.topk(probs_V, limit if top_k else min(limit, _FIRST_CANDIDATES))
    if probs.numel() < limit and not _decided(probs, top_p, min_p):
        probs, ids = torch.topk(probs_V, limit)
    mass_before = probs.cumsum(0) - probs
    # top-p is relative to what top-k kept, as in the usual order of the filters.
    total = float(probs.sum()) if top_k else 1.0
    keep = (mass_before < top_p * total) & (probs >= min_p * probs[0])
    keep[0] = True
    return probs[keep], ids[keep]


def _decided(probs: Tensor, top_p: float, min_p: float) -> bool:
    """True if every candidate beyond these would be cut anyway."""
    return float(probs.sum()) >= top_p or float(probs[-1]) < min_p * float(probs[0])


def _logprobs(raw_V: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs_V = torch.log_softmax(raw_V, dim=-1)
    chosen = float(logprobs_V[token])
    rank = int((logprobs_V > logprobs_V[token]).sum()) + 1
    values, ids = torch.topk(logprobs_V, min(count, logprobs_V.numel()))
    return TokenLogprobs(token, chosen, rank, tuple(zip(ids.tolist(), values.tolist(), strict=True)))
