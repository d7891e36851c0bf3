"""Braid beside transformers' ``generate``: same machine, same run, same weights, interleaved rounds.

Prompts are random token ids, all distinct, so that no prefix cache can help. Greedy, end-of-sequence ignored.

    prefill     prompt tokens / time to the first token, one stream
    decode S    tokens per second of S streams, all together, while all of them decode: from the moment the last one has
                its first token until the first one ends
    output S    all output tokens / wall time, prefill included

Each number is the median of the rounds. transformers is given its best: a static batch without padding, sdpa attention,
and float32 beside bfloat16, as some processors are slow in the latter.
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
from streams import Times, run_streams

from braid import LLM
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights

STREAMS = 8
GOALS = {"decode 1": 2.0, f"output {STREAMS}": 1.5, "prefill": 1.0}
"""Least ratio to transformers in the same dtype that this project set itself."""


class System(Protocol):
    """Something that generates ``new_tokens`` for each prompt."""

    name: str

    def run(self, prompts: list[list[int]], new_tokens: int) -> Times: ...


class Braid:
    """The engine in this process."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        self.llm = LLM(model, dtype, "cpu", threads=threads)
        self.name = "braid"

    def run(self, prompts: list[list[int]], new_tokens: int) -> Times:
        return run_streams(self.llm, prompts, new_tokens)


class Transformers:
    """``generate`` of the same weights, as Braid's loader dequantised them."""

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
        self.name = f"transformers {dtype}"

    def run(self, prompts: list[list[int]], new_tokens: int) -> Times:
        ids = torch.tensor(prompts)
        moments: list[float] = []
        begin = time.perf_counter()

        def stamp(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            """A stopping criterion, asked after every token, that never stops."""
            moments.append(time.perf_counter() - begin)
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            stopping_criteria=[stamp],
        )
        assert out.shape[1] == ids.shape[1] + new_tokens == ids.shape[1] + len(moments)
        return [moments] * len(prompts)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    braid = Braid(args.model, args.dtype, args.threads)
    result: dict[str, Any] = {"settings": vars(args) | {"json": None}, "machine": machine()}
    print(describe(result["machine"]))
    print(f"{args.model} {args.dtype}, {args.threads} threads, kernels: {braid.llm.info.kernels}")
    if not args.only_profile:
        systems: list[System] = [braid, *(Transformers(args.model, dtype) for dtype in args.peer_dtypes)]
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
    """One row per figure: each system's median, and the ratios."""
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
    times = system.run(prompts(streams), args.new_tokens)
    if streams == 1:
        yield "prefill", args.prompt_tokens / times[0][0]
    else:
        yield f"output {streams}", streams * args.new_tokens / max(stream[-1] for stream in times)
    yield f"decode {streams}", decode_rate(times)


def decode_rate(times: Times) -> float:
    """Tokens per second of all streams while all of them decode."""
    begin = max(stream[0] for stream in times)
    end = min(stream[-1] for stream in times)
    return sum(begin < moment <= end for stream in times for moment in stream) / (end - begin)


def _row(figure: str, values: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(samples) for name, samples in values.items()}
    ours, *peers = medians.values()
    goal = GOALS.get(figure)
    return {
        "tok/s": figure,
        **medians,
        "ratio": ours / peers[0],
        "goal": "" if goal is None else f">= {goal}",
        "ratio to best": ours / max(peers),
        "rounds": {name: [round(value, 1) for value in samples] for name, samples in values.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dtypes = ("bfloat16", "float32")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=dtypes)
    parser.add_argument(
        "--peer-dtypes", nargs="+", default=list(dtypes), choices=dtypes, help="the first has the goal"
    )
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
