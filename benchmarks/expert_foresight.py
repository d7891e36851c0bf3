"""How well does the next layer's router foretell, asked one layer early? And what do early reads then save?

    python benchmarks/derive_moe.py FOLDER
    python benchmarks/expert_foresight.py FOLDER [--expert-memory 50%] [--json F]

On the mixture of experts that is derived from the default model: its hidden states are real, its routers were fitted.
Of the experts that a token is foretold, the share that it then uses, beside two guesses that cost nothing: those of
the token before, and those used most so far. Then the same answers with early reads off and on, in turn.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import describe, machine, save, show
from torch import Tensor

from braid import LLM, SamplingParams
from braid.layers.moe import Routed
from braid.runner.experts.early import Predicted
from braid.runner.experts.store import ExpertStore

PROMPTS = (
    "The sea was calm that morning, and the fishermen",
    "def fibonacci(n):\n    ",
    "The three branches of government are",
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "To make bread you need flour, water, salt and yeast. First",
    "The boiling point of water depends on",
)
PARAMS = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
Predict = Callable[[], Sequence[Predicted]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="made by derive_moe.py")
    parser.add_argument("--expert-memory", default="50%")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Watch:
    """Stands before a store's ``compute`` and counts, of decodes of one request, what was guessed right."""

    def __init__(self, store: ExpertStore) -> None:
        self.right: Counter[str] = Counter()
        self.guessed: Counter[str] = Counter()
        self._compute = store.compute
        self._foretold: dict[int, set[int]] = {}
        self._before: dict[int, set[int]] = {}
        self._used: dict[int, Counter[int]] = {}
        store.compute = self._watched  # type: ignore[method-assign]

    def _watched(
        self,
        layer: int,
        x_TD: Tensor,
        routed: Routed,
        *,
        act: str,
        is_prefill: bool = False,
        predict: Predict | None = None,
    ) -> Tensor:
        if len(routed.ids_Tk) == 1:
            self._check(layer, set(routed.ids_Tk[0].tolist()))
            for one in predict() if predict is not None else ():
                self._foretold[one.layer] = set(one.routed.ids_Tk[0].tolist())
        return self._compute(layer, x_TD, routed, act=act, is_prefill=is_prefill, predict=predict)

    def _check(self, layer: int, chosen: set[int]) -> None:
        used = self._used.setdefault(layer, Counter())
        guesses = {
            "the next layer's router": self._foretold.pop(layer, set()),
            "the token before": self._before.get(layer, set()),
            "those used most": {expert for expert, _ in used.most_common(len(chosen))},
        }
        for name, guess in guesses.items():
            self.right[name] += len(guess & chosen)
            self.guessed[name] += len(guess)
        self._before[layer] = chosen
        used.update(chosen)


def opened(options: argparse.Namespace, prefetch: str) -> tuple[LLM, ExpertStore]:
    llm = LLM(str(options.folder), expert_memory=options.expert_memory, expert_prefetch=prefetch)
    store = llm._core._experts
    assert store is not None
    return llm, store


def timed(llm: LLM) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds per token, one prompt after the other, and the tokens."""
    begin = time.perf_counter()
    tokens = [llm.generate([prompt], PARAMS)[0].token_ids for prompt in PROMPTS]
    return (time.perf_counter() - begin) / sum(map(len, tokens)), tokens


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options, where = arguments(), machine()
    print(describe(where))
    llm, store = opened(options, "on")
    with llm:
        watch = Watch(store)
        timed(llm)
        shape = store.shape
    guesses = [
        {"guess": name, "right, %": 100 * watch.right[name] / count, "of": count}
        for name, count in watch.guessed.items()
        if count
    ]
    guesses.append({"guess": "any", "right, %": 100 * shape.top_k / shape.per_layer, "of": 0})
    show(f"{shape.layers} layers, {shape.top_k} of {shape.per_layer} experts per token", guesses)
    seconds: dict[str, list[float]] = {"off": [], "on": [], "auto": []}
    fates: dict[str, dict[str, Any]] = {}
    answers = []
    engines = {mode: opened(options, mode) for mode in seconds}
    for _ in range(options.rounds):
        for mode, (llm, store) in engines.items():
            took, tokens = timed(llm)
            seconds[mode].append(took)
            answers.append(tokens)
            stats = store.stats()
            fates[mode] = {**stats.prefetched, "stall_s": stats.stall_s, **store.detail()["prefetch"]}  # type: ignore[dict-item]
    for llm, _ in engines.values():
        llm.close()
    assert all(each == answers[0] for each in answers), "early reads changed a token"
    rows = [
        {
            "early reads": mode,
            "ms per token": 1000 * median(seconds[mode]),
            "useful": fates[mode]["useful"],
            "late": fates[mode]["late"],
            "wasted": fates[mode]["wasted"],
            "stood still, s": fates[mode]["stall_s"],
        }
        for mode in seconds
    ]
    show(f"{options.expert_memory} of the experts in memory, the same tokens", rows)
    save(
        options.json, {"machine": where, "guesses": guesses, "rows": rows, "rounds": seconds, "learnt": fates}
    )


if __name__ == "__main__":
    main()
