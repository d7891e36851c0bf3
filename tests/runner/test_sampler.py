"""Sampling: each filter against a naive reading of its definition, and independence from the batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, SampleSpec
from braid.runner.sampler import sample, uniform

VOCAB = 300


def spec(
    seed: int = 0,
    history: list[int] | None = None,
    prompt: int = 1,
    banned: tuple[int, ...] = (),
    **params: Any,
) -> SampleSpec:
    history = [0] if history is None else history
    return SampleSpec(SamplingParams(**params), seed, history, prompt, banned)


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draw(row: torch.Tensor, **params: Any) -> Counter[int]:
    """Token counts over many output positions of one request."""
    counts: Counter[int] = Counter()
    for position in range(400):
        outcome = sample(row.clone().unsqueeze(0), [spec(history=[0] * (position + 1), **params)])[0]
        assert isinstance(outcome, SampledToken)
        counts[outcome.token_id] += 1
    return counts


def test_greedy_takes_the_largest() -> None:
    rows = logits(5)
    tokens = [outcome.token_id for outcome in sample(rows.clone(), [spec(temperature=0)] * 5)]  # type: ignore[union-attr]
    assert tokens == rows.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"top_k": 40, "top_p": 0.6, "min_p": 0.05}]
)
def test_filters_keep_what_they_say(params: dict[str, Any]) -> None:
    row = logits()[0]
    probs = torch.softmax(row.double(), -1)
    order = probs.argsort(descending=True).tolist()
    allowed = set(order[: params.get("top_k", VOCAB)])
    total = sum(float(probs[token]) for token in allowed)
    nucleus, mass = set(), 0.0
    for token in order:
        if mass < params.get("top_p", 1.0) * total:
            nucleus.add(token)
        mass += float(probs[token])
    allowed &= nucleus
    allowed &= {token for token in order if probs[token] >= params.get("min_p", 0.0) * probs[order[0]]}
    assert set(draw(row, **params)) <= allowed
    assert len(allowed) > 1


def test_frequencies_follow_the_distribution() -> None:
    row = torch.full((VOCAB,), -torch.inf)
    row[[3, 9]] = torch.tensor([math.log(0.75), math.log(0.25)])
    counts = draw(row)
    assert set(counts) == {3, 9}
    assert 250 < counts[3] < 350
    assert draw(row, temperature=100.0)[3] < 250


def test_a_wide_nucleus_equals_a_full_sort() -> None:
    flat = torch.zeros(2000)
    seen = {
        sample(flat.clone().unsqueeze(0), [spec(history=[0] * n, top_p=0.99)])[0].token_id  # type: ignore[union-attr]
        for n in range(1, 400)
    }
    assert max(seen) > 256


def test_a_row_does_not_depend_on_its_batch() -> None:
    rows = logits(4)
    mixed = [
        spec(seed=1, temperature=0.9),
        spec(seed=2, temperature=0),
        spec(seed=3, top_p=0.7, logprobs=2),
        spec(seed=4, top_k=9, repetition_penalty=1.3, history=[5, 6, 7]),
    ]
    together = sample(rows.clone(), mixed)
    alone = [sample(rows[i : i + 1].clone(), [mixed[i]])[0] for i in range(4)]
    assert together == alone
    turned = sample(rows.flip(0).clone(), mixed[::-1])
    assert turned == together[::-1]


def test_penalties_match_their_formulas() -> None:
    row = logits()[0]
    history = [10, 11, 12, 12, 13]
    changed = row.clone().unsqueeze(0)
    wanted = spec(
        history=history,
        prompt=2,
        temperature=0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=1.5,
    )
    sample(changed, [wanted])
    expected = row.clone()
    for token in (10, 11, 12, 13):
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token, count in ((12, 2), (13, 1)):
        expected[token] -= 0.5 + 0.25 * count
    torch.testing.assert_close(changed[0], expected)


def test_bias_and_bans() -> None:
    rows = logits()
    best = int(rows.argmax())
    forced = sample(rows.clone(), [spec(temperature=0, logit_bias={(best + 1) % VOCAB: 100.0})])[0]
    assert isinstance(forced, SampledToken)
    assert forced.token_id == (best + 1) % VOCAB
    banned = sample(rows.clone(), [spec(temperature=0, banned=(best,))])[0]
    assert isinstance(banned, SampledToken)
    assert banned.token_id != best


def test_logprobs_are_the_models_own() -> None:
    rows = logits()
    outcome = sample(rows.clone(), [spec(temperature=0, logprobs=3, logit_bias={5: 100.0})])[0]
    assert isinstance(outcome, SampledToken)
    assert outcome.logprobs is not None
    reference = torch.log_softmax(rows[0], -1)
    assert outcome.token_id == 5
    assert outcome.logprobs.logprob == pytest.approx(float(reference[5]), abs=1e-5)
    assert outcome.logprobs.rank == int((reference > reference[5]).sum()) + 1
    assert [token for token, _ in outcome.logprobs.top] == reference.topk(3).indices.tolist()


def test_a_row_that_is_not_finite_fails_alone() -> None:
    rows = logits(2)
    rows[0] = torch.nan
    for params in ({"temperature": 0.0}, {"temperature": 1.0}):
        outcomes = sample(rows.clone(), [spec(**params)] * 2)
        assert isinstance(outcomes[0], ArithmeticError)
        assert isinstance(outcomes[1], SampledToken)


@pytest.mark.parametrize("temperature", [1e-6, 1e-100, 1e-307, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    row = logits()[0]
    for filters in ({}, {"top_k": 5}, {"top_p": 0.9}):
        assert set(draw(row, temperature=temperature, **filters)) == {int(row.argmax())}


def test_random_numbers_are_a_function_of_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in range(30) for position in range(30)]
    assert len(set(numbers)) == 900
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(7, 3) == uniform(7, 3)
    assert abs(sum(numbers) / 900 - 0.5) < 0.05
