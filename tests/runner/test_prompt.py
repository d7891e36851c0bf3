"""Known tokens weighed and hidden states pooled: exact, in slices of bounded memory."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from braid.core.step import ScoreSpec
from braid.models.decoder import CausalLM
from braid.runner import prompt
from braid.runner.prompt import pool, score

VOCAB = 50


class Head:
    """The part of a model that makes logits; it notes how many rows it was asked for."""

    def __init__(self, weight_VD: Tensor) -> None:
        self.head = torch.nn.Linear(1, 1)
        self.head.weight = torch.nn.Parameter(weight_VD)
        self.asked: list[int] = []

    def logits(self, hidden_ND: Tensor) -> Tensor:
        self.asked.append(len(hidden_ND))
        return hidden_ND @ self.head.weight.T


@pytest.fixture
def head() -> Head:
    return Head(torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(0)))


HIDDEN = torch.randn(11, 8, generator=torch.Generator().manual_seed(1))
TOKENS = (3, 49, 0, 7, 7, 12, 30, 2, 41, 5)


@pytest.mark.parametrize("rows", [1, 3, 100])
@torch.no_grad()
def test_slices_change_nothing(head: Head, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(prompt, "MAX_LOGITS_BYTES", rows * VOCAB * 4)
    found = score(cast(CausalLM, head), HIDDEN, ScoreSpec(TOKENS, 2))
    expected_NV = torch.log_softmax(HIDDEN @ head.head.weight.T, dim=-1)
    assert max(head.asked) == min(rows, len(TOKENS))
    assert [entry.token_id for entry in found] == list(TOKENS)
    for row, entry in enumerate(found):
        assert entry.logprob == pytest.approx(float(expected_NV[row, entry.token_id]), abs=1e-5)
        order = expected_NV[row].argsort(descending=True).tolist()
        assert entry.rank == order.index(entry.token_id) + 1
        assert [token for token, _ in entry.top] == order[:2]
        assert [value for _, value in entry.top] == pytest.approx(
            [float(expected_NV[row, token]) for token in order[:2]], abs=1e-5
        )


@torch.no_grad()
def test_no_alternatives_are_no_alternatives(head: Head) -> None:
    assert [entry.top for entry in score(cast(CausalLM, head), HIDDEN, ScoreSpec(TOKENS[:2], 0))] == [(), ()]


@torch.no_grad()
def test_logits_that_are_not_finite_are_an_error(head: Head) -> None:
    broken_ND = HIDDEN.clone()
    broken_ND[1] = torch.inf
    with pytest.raises(ArithmeticError, match="not finite"):
        score(cast(CausalLM, head), broken_ND, ScoreSpec(TOKENS, 0))


def test_the_last_row_or_the_sum_of_all() -> None:
    assert pool(HIDDEN, "last") == HIDDEN[-1].tolist()
    assert pool(HIDDEN, "mean") == pytest.approx(HIDDEN.double().sum(0).tolist())
    assert pool(HIDDEN.bfloat16(), "mean") == pytest.approx(HIDDEN.bfloat16().double().sum(0).tolist())
