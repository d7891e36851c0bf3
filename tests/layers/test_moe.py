"""Routing rules on hand-made scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from braid.layers.moe import Router, Routing


def make_router(routing: Routing, bias: list[float] | None = None) -> Router:
    """A router whose logits are its input."""
    router = Router(routing.num_experts, routing)
    router.weight = nn.Parameter(torch.eye(routing.num_experts), requires_grad=False)
    if bias is not None:
        router.e_score_correction_bias = nn.Parameter(torch.tensor(bias), requires_grad=False)
    return router


def route(router: Router, logits: list[float]) -> dict[int, float]:
    ids, weights, _ = router(torch.tensor([logits]))
    return dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))


def softmax(logits: list[float]) -> Tensor:
    return torch.tensor(logits).softmax(0)


def test_softmax_weights_are_kept_or_normalised() -> None:
    logits = [1.0, 3.0, 2.0, 0.0]
    p = softmax(logits)
    plain = route(make_router(Routing(4, 2)), logits)
    assert plain == pytest.approx({1: float(p[1]), 2: float(p[2])})
    normed = route(make_router(Routing(4, 2, normalise=True, scaling=2.0)), logits)
    assert sum(normed.values()) == pytest.approx(2.0)
    assert normed[1] / normed[2] == pytest.approx(float(p[1] / p[2]))


def test_groups_by_their_best_expert() -> None:
    routing = Routing(6, 2, num_groups=3, top_groups=1)
    assert set(route(make_router(routing), [5.0, 0.0, 4.0, 4.5, 1.0, 1.0])) == {0, 1}


def test_groups_by_their_best_two_and_bias_only_in_the_choice() -> None:
    routing = Routing(6, 2, scoring="sigmoid", num_groups=3, top_groups=1, bias=True)
    chosen = route(make_router(routing, [0.0] * 6), [5.0, -9.0, 2.0, 2.0, 0.0, 0.0])
    assert set(chosen) == {2, 3}
    pushed = route(make_router(routing, [0.0, 0.0, 0.0, 0.0, 3.0, 3.0]), [5.0, -9.0, 2.0, 2.0, 0.0, 0.0])
    assert pushed == pytest.approx({4: 0.5, 5: 0.5})


def test_routing_is_float32_whatever_the_input() -> None:
    ids, weights, _ = make_router(Routing(4, 2))(torch.ones(3, 4, dtype=torch.bfloat16))
    assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
