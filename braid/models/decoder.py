"""The frame all families share: blocks in a row between an embedding and a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.attention import KV
from braid.layers.batch import ForwardBatch
from braid.layers.linear import Embedding, Linear
from braid.layers.norm import RMSNorm
from braid.layers.rotary import Rotary, Rotation


class Block(nn.Module):
    """One decoder layer: norm, attention, norm, MLP, each added to the residual stream.

    Args:
        attention_out_norm, mlp_out_norm: norms of the branches' outputs before they are added (Gemma).
        rope: which of the decoder's rotations this layer uses.
    """

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module,
        attention_norm: RMSNorm,
        mlp_norm: RMSNorm,
        *,
        attention_out_norm: RMSNorm | None = None,
        mlp_out_norm: RMSNorm | None = None,
        rope: int = 0,
    ) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self.attention_out_norm, self.mlp_out_norm = attention_out_norm, mlp_out_norm
        self.rope = rope

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        cos_sin: tuple[Tensor, Tensor],
        batch: ForwardBatch,
        kv: KV,
    ) -> tuple[Tensor, Tensor]:
        """The MLP branch's output and the residual stream it is still to be added to."""
        if residual_TD is None:
            x_TD, residual_TD = self.attention_norm(x_TD), x_TD
        else:
            x_TD, residual_TD = self.attention_norm.add(x_TD, residual_TD)
        x_TD = self.attention(x_TD, cos_sin, batch, kv)
        if self.attention_out_norm is not None:
            x_TD = self.attention_out_norm(x_TD)
        x_TD, residual_TD = self.mlp_norm.add(x_TD, residual_TD)
        x_TD = self.mlp(x_TD)
        return (x_TD if self.mlp_out_norm is None else self.mlp_out_norm(x_TD)), residual_TD


@dataclass(slots=True, eq=False)
class Passage:
    """A batch on its way through the layers: ``layer`` is the next one.

    Args:
        x_TD, residual_TD: what the layers before left; their sum is the residual stream. None before the first.
        turns: of the batch's positions.
    """

    x_TD: Tensor
    residual_TD: Tensor | None
    turns: Sequence[tuple[Tensor, Tensor]]
    batch: ForwardBatch
    layer: int = 0


class CausalLM(nn.Module):
    """A decoder-only language model.

    Args:
        rotations: the different rotations of the blocks, each computed once per step.
        head: None where the embedding's weight is the head's too.
        softcap: tanh bound of the logits; None for none.
        names: checkpoint names (without ``.weight`` and the like) of each module that has weights; ``{l}`` stands
            for the layer and ``{x}`` for the expert. Several names are stacked in this order.
        renames: ``(prefix in the checkpoint, prefix in names)``, for checkpoints that keep the model within another.
        inert: regular expressions of checkpoint tensors that carry nothing this model needs.
        device: where the weights shall be.
    """

    def __init__(
        self,
        embedding: Embedding,
        blocks: Sequence[Block],
        norm: RMSNorm,
        head: Linear | None,
        *,
        rotations: Sequence[Rotation],
        softcap: float | None = None,
        names: Mapping[str, tuple[str, ...]],
        renames: Sequence[tuple[str, str]] = (),
        inert: Sequence[str] = (),
        device: torch.device,
    ) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = embedding, norm, head
        self.blocks = nn.ModuleList(blocks)
        self.ropes = nn.ModuleList(Rotary(rotation) for rotation in rotations)
        self.softcap, self.device = softcap, device
        self.names, self.renames, self.inert = names, renames, inert

    @property
    def kv_shapes(self) -> list[tuple[tuple[int, ...], ...]]:
        """Per layer, the trailing shapes of its KV tensors for one token."""
        return [block.attention.kv_shapes for block in self.blocks]  # type: ignore[union-attr, misc]

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: Sequence[KV]) -> Tensor:
        """Hidden states [T, D] after the final norm; writes the new tokens' KV.

        Args:
            kv: per layer, tensors [num_blocks, block_size, *shape] for the shapes in ``kv_shapes``, finite everywhere
                (start them with zeros: what is masked is multiplied by 0, not skipped).
        """
        return self.conclude(self.advance(self.begin(batch), kv, len(self.blocks)))

    @torch.inference_mode()
    def begin(self, batch: ForwardBatch) -> Passage:
        """Before the first layer."""
        turns = self.turns(batch.positions_T, max(batch.context_lens))
        return Passage(self.embedding(batch.token_ids_T), None, turns, batch)

    @torch.inference_mode()
    def resume(self, batch: ForwardBatch, x_TD: Tensor, residual_TD: Tensor, layer: int) -> Passage:
        """Before ``layer``, with what the layers before left in another passage of the same tokens."""
        turns = self.turns(batch.positions_T, max(batch.context_lens))
        return Passage(x_TD, residual_TD, turns, batch, layer)

    @torch.inference_mode()
    def advance(self, passage: Passage, kv: Sequence[KV], end: int) -> Passage:
        """Compute the layers up to ``end`` of the same passage; they write KV."""
        x_TD, residual_TD = passage.x_TD, passage.residual_TD
        for layer in range(passage.layer, end):
            block = self.blocks[layer]
            turn = passage.turns[int(block.rope)]  # type: ignore[arg-type]
            x_TD, residual_TD = block(x_TD, residual_TD, turn, passage.batch, kv[layer])
        passage.x_TD, passage.residual_TD, passage.layer = x_TD, residual_TD, end
        return passage

    @torch.inference_mode()
    def conclude(self, passage: Passage) -> Tensor:
        """Hidden states [T, D] after the last layer and the final norm."""
        assert passage.layer == len(self.blocks), "not all layers are computed"
        x_TD, residual_TD = passage.x_TD, passage.residual_TD
        return self.norm(x_TD) if residual_TD is None else self.norm.add(x_TD, residual_TD)[0]

    def turns(self, positions_T: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
        """cos and sin [T, R/2] of each rotation at these positions, all below ``length``."""
        return [rope(positions_T, length) for rope in self.ropes]

    def stack(
        self, x_TD: Tensor, turns: Sequence[tuple[Tensor, Tensor]], batch: ForwardBatch, kv: Sequence[KV]
    ) -> Tensor:
        """The blocks and the final norm: the part of ``forward`` between the embedding and the head."""
        return self.conclude(self.advance(Passage(x_TD, None, turns, batch), kv, len(self.blocks)))

    @torch.inference_mode()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in float32."""
        head = self.embedding if self.head is None else self.head
        logits_NV = ops.logits(hidden_ND, head.weight)
        if self.softcap is not None:
            logits_NV = (logits_NV / self.softcap).tanh_().mul_(self.softcap)
        return logits_NV
