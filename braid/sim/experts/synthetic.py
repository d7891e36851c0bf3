"""Routing that nobody recorded: skewed, and alike from one token to the next. Label results with it synthetic.

In each layer an expert's logit is the sum of three normal numbers: how popular it is, which never changes; how much the
text of late wants it, which changes slowly; and the token's own. The three add up to a variance of one; the router's
scores are the softmax of ``SHARPNESS`` times that. A prompt and what follows it are one text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import exp, sqrt
from types import MappingProxyType

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed
from braid.sim.experts.steps import Step

SHARPNESS = 2.0
SCORED = 2
"""Times ``top_k`` experts have scores that are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Habits:
    """Args:
    popularity, text: parts of the variance; the token's own is what is left.
    persistence: what is kept from token to token of what the text wants.
    """

    popularity: float
    text: float
    persistence: float = 0.9

    def __post_init__(self) -> None:
        if not (self.popularity >= 0 and self.text >= 0 and self.popularity + self.text <= 1):
            raise ValueError(
                f"popularity and text must be parts of one, got {self.popularity} and {self.text}"
            )


USUAL = Habits(popularity=0.1, text=0.22, persistence=0.97)
HABITS: Mapping[str, Habits] = MappingProxyType(
    {
        "qwen2-57b-a14b": USUAL,
        "deepseek-v2-lite": USUAL,
        "mixtral-8x7b": Habits(popularity=0.03, text=0.12, persistence=0.97),
        "qwen3-30b-a3b": Habits(popularity=0.1, text=0.6, persistence=0.97),
    }
)
"""Chosen so that LRU with a quarter of each layer's experts hits as often as was published (HybriMoE: Qwen2 45.0,
DeepSeek 47.7, Mixtral 30.2 %; Qwen3: 81.8 % in a recording of 128 tokens)."""


class _Layer:
    """The logits of one layer, token by token. The model's seed says who is popular, the text's all else."""

    def __init__(self, habits: Habits, num: int, model: random.Random, text: random.Random) -> None:
        self._rng = text
        self._fixed = [sqrt(habits.popularity) * model.gauss(0, 1) for _ in range(num)]
        self._wanted = [text.gauss(0, 1) for _ in range(num)]
        self._text = sqrt(habits.text)
        self._own = sqrt(max(0.0, 1 - habits.popularity - habits.text))
        self._kept = habits.persistence
        self._new = sqrt(1 - habits.persistence**2)

    def token(self) -> list[float]:
        gauss, kept, new = self._rng.gauss, self._kept, self._new
        self._wanted = [kept * wanted + new * gauss(0, 1) for wanted in self._wanted]
        text, own = self._text, self._own
        return [
            fixed + text * wanted + own * gauss(0, 1)
            for fixed, wanted in zip(self._fixed, self._wanted, strict=True)
        ]


class Synthetic:
    """Args:
    seed: another one is another model and another text; ``text`` another text of the same model.
    """

    def __init__(self, shape: ExpertShape, habits: Habits, *, seed: int = 0, text: int = 0) -> None:
        self.shape = shape
        self._layers = [
            _Layer(
                habits,
                shape.per_layer,
                random.Random(f"{seed} {layer}"),
                random.Random(f"{seed} {layer} {text}"),
            )
            for layer in range(shape.layers)
        ]

    def prompt(self, tokens: int) -> Step:
        """All of its tokens in one step."""
        return Step(
            tokens, tuple(self._routed(layer, tokens, is_prefill=True) for layer in range(self.shape.layers))
        )

    def decodes(self, tokens: int) -> Iterator[Step]:
        for _ in range(tokens):
            yield Step(
                1, tuple(self._routed(layer, 1, is_prefill=False) for layer in range(self.shape.layers))
            )

    def _routed(self, layer: int, rows: int, *, is_prefill: bool) -> Routed:
        loads: dict[int, int] = {}
        scores: dict[int, float] = {}
        top_k = self.shape.top_k
        for _ in range(rows):
            logits = self._layers[layer].token()
            weights = [exp(SHARPNESS * logit) for logit in logits]
            total = rows * sum(weights)
            best = nlargest(SCORED * top_k, range(len(weights)), key=weights.__getitem__)
            for rank, index in enumerate(best):
                expert = self.shape.id_of(layer, index)
                scores[expert] = scores.get(expert, 0.0) + weights[index] / total
                if rank < top_k:
                    loads[expert] = loads.get(expert, 0) + 1
        return Routed(layer, loads, scores, is_prefill)


def popular(steps: Sequence[Step], shape: ExpertShape, num: int) -> list[int]:
    """Of every layer the experts that had most rows, as many in each, ``num`` in all: a placement by frequency."""
    rows = [0] * shape.total
    for step in steps:
        for routed in step.layers:
            for expert, load in routed.loads.items():
                rows[expert] += load
    found: list[int] = []
    each, rest = divmod(num, shape.layers)
    for layer in range(shape.layers):
        ids = range(shape.id_of(layer, 0), shape.id_of(layer + 1, 0))
        found += nlargest(each + (layer < rest), ids, key=lambda expert: (rows[expert], -expert))
    return found
