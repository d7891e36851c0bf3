"""Experts of a store in the place of those that a model would hold in memory itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.core.errors import CheckpointError
from braid.core.experts import ExpertShape
from braid.layers.batch import ForwardBatch
from braid.layers.moe import MoE, Routed, Router
from braid.layers.norm import RMSNorm
from braid.models.decoder import Block, CausalLM
from braid.runner.experts.early import Predicted
from braid.runner.experts.store import ExpertStore

AHEAD = 1
"""Layers: the next one is foretold best, and a read lasts about as long as a layer."""
ZERO = 1e-6
"""Of a norm's weight: below, what it scaled is lost."""


class _Step(threading.local):
    """What kind of batch this thread is at."""

    def __init__(self) -> None:
        self.is_prefill = False


class Foresight:
    """A later layer's router, asked with the input of this layer's experts.

    Both inputs are norms of the residual stream, which changes slowly: only the norms' weights differ, and their ratio
    goes into the router's matrix.
    """

    def __init__(self, layer: int, distance: int, router: Router, own: RMSNorm, theirs: RMSNorm) -> None:
        self._layer, self._distance, self._router = layer, distance, router
        self._own, self._theirs = own, theirs
        self._matrix_XD: Tensor | None = None

    def predict(self, x_TD: Tensor) -> Predicted:
        logits_TX = ops.linear(x_TD.float(), self._matrix())
        return Predicted(self._layer, self._distance, self._router.choose(logits_TX))

    def _matrix(self) -> Tensor:
        """Made when it is first needed: weights are loaded by then."""
        if self._matrix_XD is None:
            own_D, theirs_D = self._own.weight, self._theirs.weight
            lost_D = own_D.abs() < ZERO
            ratio_D = torch.where(lost_D, 0.0, theirs_D / torch.where(lost_D, 1.0, own_D))
            self._matrix_XD = self._router.weight * ratio_D
        return self._matrix_XD


class StoredExperts(nn.Module):
    """The routed experts of one layer, in a store. Has no weights of its own: loading a checkpoint skips them."""

    def __init__(self, store: ExpertStore, layer: int, *, act: str, step: _Step | None = None) -> None:
        super().__init__()
        self._store, self._layer, self._act = store, layer, act
        self._step = step or _Step()
        self._foresights: list[Foresight] = []

    def foresee(self, foresights: Sequence[Foresight]) -> None:
        """Ask these routers ahead, while the store wants it."""
        self._foresights = list(foresights)

    def forward(self, x_TD: Tensor, routed: Routed) -> Tensor:
        return self._store.compute(
            self._layer,
            x_TD,
            routed,
            act=self._act,
            is_prefill=self._step.is_prefill,
            predict=(lambda: [one.predict(x_TD) for one in self._foresights]) if self._foresights else None,
        )


def install(model: CausalLM, store: ExpertStore) -> None:
    """Let ``store`` hold the routed experts of ``model``. Before its weights are loaded.

    Raises:
        CheckpointError: they are those of another model.
    """
    blocks = [block for block in model.blocks if isinstance(block, Block) and isinstance(block.mlp, MoE)]
    mixtures = [block.mlp for block in blocks if isinstance(block.mlp, MoE)]
    _check(mixtures, store)
    step = _Step()

    def note(block: nn.Module, inputs: tuple[object, ...]) -> None:
        batch = next(value for value in inputs if isinstance(value, ForwardBatch))
        rows = batch.query_start[-1]
        step.is_prefill = 2 * batch.num_decodes < rows

    for layer, (block, mixture) in enumerate(zip(blocks, mixtures, strict=True)):
        stored = StoredExperts(store, layer, act=mixture.experts.act, step=step)
        mixture.experts = stored  # type: ignore[assignment]
        block.register_forward_pre_hook(note)
        if store.prefetch != "off":
            later = range(layer + 1, min(layer + AHEAD + 1, len(blocks)))
            stored.foresee(
                [
                    Foresight(to, to - layer, mixtures[to].router, block.mlp_norm, blocks[to].mlp_norm)
                    for to in later
                ]
            )


def _check(mixtures: Sequence[MoE], store: ExpertStore) -> None:
    if not mixtures:
        raise CheckpointError(f"{store.file.path}: holds experts, but the model has none")
    routing, experts = mixtures[0].router.routing, mixtures[0].experts
    hidden, size = experts.gate_up.weight.shape[2], experts.down.weight.shape[2]
    store.file.check_model(ExpertShape(len(mixtures), routing.num_experts, routing.top_k), hidden, size)
