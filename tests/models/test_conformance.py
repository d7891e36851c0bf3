"""Every family against transformers: the same greedy tokens and logits, through paged KV, chunks and mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.layers.moe import Router
from braid.models.decoder import CausalLM

NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 3, 8, 17, 24, 31, 47, 70)
FLOAT32_LIMIT = 1e-4
BFLOAT16_LIMIT = 3e-2

CASES = (
    "llama",
    "llama_llama3",
    "llama_linear_bias",
    "llama_yarn",
    "mistral",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "gemma3",
    "gemma3_pattern",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v2_groups",
    "deepseek_v3",
)


def prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def peer_logits(peer: Any, sequences: list[list[int]]) -> list[Tensor]:
    """Logits of all positions; padding at the right end cannot be seen by earlier positions."""
    width = max(map(len, sequences))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in sequences])
    logits = peer(ids, use_cache=False).logits
    return [row[: len(tokens)] for row, tokens in zip(logits, sequences, strict=True)]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_the_cases_are_all_listed(cases: list[str]) -> None:
    assert tuple(cases) == CASES


@pytest.mark.parametrize("case", CASES)
def test_float32_gives_transformers_greedy_tokens_and_logits(
    case: str, tiny: Callable[[str], Any], paged: Any
) -> None:
    """Token i equals transformers' argmax after the first i tokens, for all i: its greedy output is the same."""
    checkpoint = tiny(case)
    sequences, logits = paged(checkpoint.build()).run(prompts(checkpoint.config["vocab_size"]), NEW_TOKENS)
    theirs = peer_logits(checkpoint.peer, sequences)
    for length, tokens, ours, want in zip(PROMPT_LENGTHS, sequences, logits, theirs, strict=True):
        assert len(tokens) == length + NEW_TOKENS
        assert tokens[length:] == want[length - 1 : -1].argmax(-1).tolist()
        assert relative_error(ours, want[:-1]) <= FLOAT32_LIMIT
    assert len({tuple(tokens[-16:]) for tokens in sequences}) > 1, "all outputs alike: the case tests nothing"


@pytest.mark.parametrize("case", ["llama", "mistral", "gemma3", "qwen3_moe", "deepseek_v3"])
def test_chunks_and_company_change_no_token(case: str, tiny: Callable[[str], Any], paged: Any) -> None:
    checkpoint = tiny(case)
    model, given = checkpoint.build(), prompts(checkpoint.config["vocab_size"])
    together, _ = paged(model, chunk=1000, apart=0).run(given, 24)
    apart, _ = paged(model, chunk=5, apart=3).run(given, 24)
    alone = [paged(model, chunk=1000).run([prompt], 24)[0][0] for prompt in given[-2:]]
    assert apart == together
    assert alone == together[-2:]


def routers(model: CausalLM) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def record_choices(model: CausalLM) -> list[list[Tensor]]:
    """The expert ids of each router, call by call, filled while the model runs."""
    taken: list[list[Tensor]] = []
    for router in routers(model):
        calls: list[Tensor] = []
        router.register_forward_hook(lambda module, args, out, calls=calls: calls.append(out[0]))
        taken.append(calls)
    return taken


def replay_choices(model: CausalLM, monkeypatch: pytest.MonkeyPatch, taken: list[list[Tensor]]) -> None:
    for router, calls in zip(routers(model), taken, strict=True):
        left = iter(calls)
        choose = lambda scores, left=left: torch.zeros_like(scores).scatter_(1, next(left), 1.0)  # noqa: E731
        monkeypatch.setattr(router, "_allowed", choose)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_logits_are_close_to_float32_ones(
    case: str, tiny: Callable[[str], Any], paged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers in float32 on the same numbers, which bfloat16 holds exactly.

    Experts are chosen as in float32: picking the other one of two near equals is no error of arithmetic.
    """
    checkpoint = tiny(case)
    wide, narrow = checkpoint.build(), checkpoint.build(torch.bfloat16)
    taken = record_choices(wide)
    sequences, _ = paged(wide).run(prompts(checkpoint.config["vocab_size"]), 4)
    given = [tokens[:-1] for tokens in sequences]
    for calls in taken:
        calls.clear()
    paged(wide).run(given, 1)
    replay_choices(narrow, monkeypatch, taken)
    _, logits = paged(narrow, dtype=torch.bfloat16).run(given, 1)
    theirs = peer_logits(checkpoint.peer, given)
    errors = [relative_error(ours, want) for ours, want in zip(logits, theirs, strict=True)]
    assert max(errors) <= BFLOAT16_LIMIT
