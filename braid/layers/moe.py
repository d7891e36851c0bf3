"""Mixtures of experts: a router, stacked experts, and experts that every token uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.linear import Linear
from braid.layers.mlp import GatedMLP
from braid.layers.weight import weight


class Routing(NamedTuple):
    """How experts are chosen.

    Args:
        scoring: "softmax" or "sigmoid" of the router's logits.
        normalise: the chosen weights are divided by their sum; ``scaling``: then multiplied by it.
        num_groups, top_groups: only experts of the best ``top_groups`` groups may be chosen. A group is as good as its
            best expert or, with a correction bias, its best two.
        bias: a learnt correction takes part in the choice but not in the weights (arXiv:2408.15664).
    """

    num_experts: int
    top_k: int
    scoring: str = "softmax"
    normalise: bool = False
    scaling: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    bias: bool = False


class Routed(NamedTuple):
    """What a router chose for each row: expert ids (int64) and weights (float32), and its scores of all X experts."""

    ids_Tk: Tensor
    weights_Tk: Tensor
    scores_TX: Tensor


class Router(nn.Module):
    """Chooses experts, computed in float32."""

    def __init__(self, hidden_size: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.weight = weight(routing.num_experts, hidden_size, dtype=torch.float32)
        self.e_score_correction_bias = (
            weight(routing.num_experts, dtype=torch.float32) if routing.bias else None
        )

    def forward(self, x_TD: Tensor) -> Routed:
        return self.choose(ops.linear(x_TD.float(), self.weight))

    def choose(self, logits_TX: Tensor) -> Routed:
        """The experts for rows with these logits."""
        routing = self.routing
        scores_TX = logits_TX.softmax(-1) if routing.scoring == "softmax" else logits_TX.sigmoid()
        ids_Tk = self._allowed(scores_TX).topk(routing.top_k, dim=-1).indices
        weights_Tk = scores_TX.gather(1, ids_Tk)
        if routing.normalise:
            weights_Tk = weights_Tk / (weights_Tk.sum(-1, keepdim=True) + 1e-20)
        return Routed(ids_Tk, weights_Tk * routing.scaling, scores_TX)

    def _allowed(self, scores_TX: Tensor) -> Tensor:
        """What the choice goes by: corrected scores, minus infinity outside the best groups."""
        routing, bias = self.routing, self.e_score_correction_bias
        choice_TX = scores_TX if bias is None else scores_TX + bias
        if routing.num_groups == 1:
            return choice_TX
        grouped = choice_TX.view(len(choice_TX), routing.num_groups, -1)
        best = grouped.amax(-1) if bias is None else grouped.topk(2, dim=-1).values.sum(-1)
        groups = best.topk(routing.top_groups, dim=-1).indices
        closed = torch.ones_like(best, dtype=torch.bool).scatter_(1, groups, False)
        return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)


class ExpertLinear(nn.Module):
    """The matrices [X, N, K] of X experts; ``rows`` as in `Linear`."""

    def __init__(
        self, num_experts: int, in_features: int, rows: tuple[int, ...], *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.rows = rows
        self.weight = weight(num_experts, sum(rows), in_features, dtype=dtype)


class Experts(nn.Module):
    """The routed experts of one layer, all in memory. Whoever holds them elsewhere takes the place of this module."""

    def __init__(
        self, num_experts: int, hidden_size: int, size: int, *, act: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.act = act
        self.gate_up = ExpertLinear(num_experts, hidden_size, (size, size), dtype=dtype)
        self.down = ExpertLinear(num_experts, size, (hidden_size,), dtype=dtype)

    def forward(self, x_TD: Tensor, routed: Routed) -> Tensor:
        ids_Tk, weights_Tk, _ = routed
        return ops.moe_ffn(x_TD, ids_Tk, weights_Tk, self.gate_up.weight, self.down.weight, act=self.act)


class MoE(nn.Module):
    """Routed experts plus, where given, shared ones, scaled by a learnt gate where given."""

    def __init__(
        self,
        router: Router,
        experts: Experts,
        shared: GatedMLP | None = None,
        shared_gate: Linear | None = None,
    ) -> None:
        super().__init__()
        self.router, self.experts = router, experts
        self.shared, self.shared_gate = shared, shared_gate

    def forward(self, x_TD: Tensor) -> Tensor:
        out_TD: Tensor = self.experts(x_TD, self.router(x_TD))
        if self.shared is None:
            return out_TD
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = shared_TD * self.shared_gate(x_TD).sigmoid()
        return out_TD + shared_TD
