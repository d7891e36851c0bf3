"""From a router's tensors to what policies are told."""

from __future__ import annotations

from math import isfinite

import numpy as np

from braid.core.experts import ExpertShape
from braid.layers.moe import Routed
from braid.policy.experts.policy import Routed as Told


def told_of(shape: ExpertShape, layer: int, routed: Routed, is_prefill: bool) -> Told:
    """Experts by id, over all rows of the batch."""
    first, num_best = layer * shape.per_layer, min(2 * shape.top_k, shape.per_layer)
    # numpy and lists: on so few numbers they take a tenth of what torch's calls take.
    ids_Tk, scores_TX = routed.ids_Tk.numpy(force=True), routed.scores_TX.numpy(force=True)
    if len(ids_Tk) == 1:
        loads, scores_X = (
            dict.fromkeys(ids_Tk[0].tolist(), 1),
            scores_TX[0],
        )  # a router chooses different ones
    else:
        indices, counts = np.unique(ids_Tk, return_counts=True)
        loads, scores_X = dict(zip(indices.tolist(), counts.tolist(), strict=True)), scores_TX.mean(0)
    best = np.argpartition(scores_X, -num_best)[-num_best:].tolist()
    all_scores = scores_X.tolist()
    scores = {first + index: all_scores[index] for index in {*best, *loads}}
    if not isfinite(sum(scores.values())):  # a broken request is not to spoil what policies learn
        scores = {}
    return Told(layer, {first + index: load for index, load in loads.items()}, scores, is_prefill)
