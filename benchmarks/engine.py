"""Braid beside transformers' ``generate``: same machine, same run, same bfloat16 weights, interleaved rounds.

Prompts are random token ids, all distinct, so that no prefix cache can help. Greedy, end-of-sequence ignored.

    decode, 1 stream     (N - 1) / (t(N tokens) - t(1 token)) of one prompt
    prefill              prompt tokens / t(1 token) of one prompt
    output, 8 streams    8 N / wall time, prefill included (transformers: one static batch)
    decode, 8 streams    8 (N - 1) / (t(N tokens) - t(1 token)) of 8 prompts

Each number is the median of the rounds. transformers is given its best: a static batch without padding, sdpa attention.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from common import describe, machine, random_prompt, save, show
from profile_step import profile

from braid import LLM, SamplingParams
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights

STREAMS = 8
GOALS = {"decode 1": 2.0, "output 8": 1.5, "prefill": 1.0}
"""Least ratio Braid / transformers that this project set itself; decode at 8 streams has no goal of its own."""


class System(Protocol):
    """Something that generates; ``run`` returns when all prompts have ``new_tokens`` each."""

    name: str

    def run(self, prompts: list[list[int]], new_tokens: int) -> None: ...


class Braid:
    """The engine in this process."""

    name = "braid"

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        self.llm = LLM(model, dtype, "cpu", threads=threads)

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        for output in self.llm.generate(prompts, params):
            assert len(output.token_ids) == new_tokens


class Transformers:
    """``generate`` of the same weights, as Braid's loader dequantised them."""

    name = "transformers"

    def __init__(self, model: str, dtype: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        checkpoint = open_checkpoint(resolve(model))
        torch_dtype = getattr(torch, dtype)
        fields = {
            key: value for key, value in checkpoint.config.items() if key not in ("model_type", "dtype")
        }
        config = AutoConfig.for_model(checkpoint.config["model_type"], **fields)
        self._model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype, attn_implementation="sdpa")
        missing, unexpected = self._model.load_state_dict(
            dict(iter_weights(checkpoint, torch_dtype)), strict=False
        )
        assert not unexpected, unexpected
        assert all("lm_head" in name for name in missing), missing
        self._model.tie_weights()
        self._model.eval()

    def run(self, prompts: list[list[int]], new_tokens: int) -> None:
        ids = torch.tensor(prompts)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + new_tokens


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    braid = Braid(args.model, args.dtype, args.threads)
    result: dict[str, Any] = {"settings": vars(args) | {"json": None}, "machine": machine()}
    print(describe(result["machine"]))
    print(f"{args.model} {args.dtype}, {args.threads} threads, kernels: {braid.llm.info.kernels}")
    if not args.only_profile:
        systems: list[System] = [braid, Transformers(args.model, args.dtype)]
        result["engine"] = compare(systems, args, braid.llm.info.vocab_size)
        show(
            f"{args.prompt_tokens} prompt tokens, {args.new_tokens} new, medians of {args.rounds}",
            result["engine"],
        )
    if args.profile or args.only_profile:
        result["profile"] = profile(braid.llm, STREAMS, args.prompt_tokens, args.new_tokens)
        show(f"Where a decode step of {STREAMS} streams goes", result["profile"])
    braid.llm.close()
    save(args.json, result)


def compare(systems: list[System], args: argparse.Namespace, vocab_size: int) -> list[dict[str, Any]]:
    """One row per figure: each system's median, and their ratio beside the goal."""
    seeds = count(1)

    def prompts(number: int) -> list[list[int]]:
        return [random_prompt(args.prompt_tokens, vocab_size, next(seeds)) for _ in range(number)]

    samples: dict[str, dict[str, list[float]]] = {}
    for system in systems:
        system.run(prompts(1), 2)  # warm up
    for _ in range(args.rounds):
        for streams in (1, STREAMS):
            for system in systems:
                for figure, value in _measure(system, prompts, streams, args):
                    samples.setdefault(figure, {}).setdefault(system.name, []).append(value)
    return [_row(figure, values) for figure, values in samples.items()]


def _measure(
    system: System, prompts: Callable[[int], list[list[int]]], streams: int, args: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    first = _seconds(system, prompts(streams), 1)
    whole = _seconds(system, prompts(streams), args.new_tokens)
    yield f"decode {streams}", streams * (args.new_tokens - 1) / (whole - first)
    if streams == 1:
        yield "prefill", args.prompt_tokens / first
    else:
        yield f"output {streams}", streams * args.new_tokens / whole


def _seconds(system: System, prompts: list[list[int]], new_tokens: int) -> float:
    begin = time.perf_counter()
    system.run(prompts, new_tokens)
    return time.perf_counter() - begin


def _row(figure: str, values: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(samples) for name, samples in values.items()}
    goal = GOALS.get(figure)
    return {
        "tok/s": figure,
        **medians,
        "ratio": medians["braid"] / medians["transformers"],
        "goal": "" if goal is None else f">= {goal}",
        "all": " | ".join(" ".join(f"{value:.1f}" for value in samples) for samples in values.values()),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=380)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="one round of 16 new tokens: a smoke test, not a figure"
    )
    parser.add_argument("--profile", action="store_true", help="also show where a decode step goes")
    parser.add_argument("--only-profile", action="store_true", help="show nothing else")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.new_tokens = 1, 16
    return args


if __name__ == "__main__":
    main()
