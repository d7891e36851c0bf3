"""Where the time of a decode step goes: the model, the sampler, and everything Braid adds around them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

from common import random_prompt
from streams import Times, run_streams

from braid import LLM
from braid.runner.runner import RunnerTimes

SETTLE = 4
"""Tokens each stream must have before counting begins, so that no prefill is counted."""


class Reading(NamedTuple):
    clock: float
    times: RunnerTimes


def profile(llm: LLM, streams: int, prompt_tokens: int, new_tokens: int) -> list[dict[str, Any]]:
    """Milliseconds and share per part of a step in which ``streams`` requests decode.

    ``kernels`` is the one foreign call that replays the blocks' native kernels, ``head`` and ``sampler`` are timed
    around their tensor operations; ``prepare`` writes the plan into the input tensors; ``loop`` is the rest:
    scheduling, bookkeeping, handing out tokens, and passing plans between threads.
    """
    counters = llm._core.runner.times
    readings: list[Reading] = []

    def on_token(times: Times) -> None:
        begun = not readings and min(map(len, times)) >= SETTLE
        ended = len(readings) == 1 and max(map(len, times)) == new_tokens
        if begun or ended:
            readings.append(Reading(time.perf_counter(), dataclasses.replace(counters)))

    prompts = [
        random_prompt(prompt_tokens, llm.info.vocab_size, seed=10_000 + index) for index in range(streams)
    ]
    run_streams(llm, prompts, new_tokens, on_token)
    begin, end = readings
    return _rows(begin, end)


def _rows(begin: Reading, end: Reading) -> list[dict[str, Any]]:
    steps = end.times.steps - begin.times.steps
    wall = end.clock - begin.clock
    kernels = end.times.kernels - begin.times.kernels
    head = end.times.head - begin.times.head
    sampler = end.times.sample - begin.times.sample
    prepare = end.times.prepare - begin.times.prepare
    loop = wall - kernels - head - sampler - prepare
    parts = {
        "kernels": kernels,
        "head": head,
        "sampler": sampler,
        "prepare": prepare,
        "loop": loop,
        "overhead (prepare + loop)": prepare + loop,
    }
    parts["whole step"] = wall
    return [
        {"part": name, "ms": 1e3 * part / steps, "share": f"{part / wall:.1%}"}
        for name, part in parts.items()
    ]
