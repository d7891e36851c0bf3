"""Where the time of a decode step goes: the model, the sampler, and everything Braid adds around them."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any, NamedTuple

from common import random_prompt

from braid import LLM, SamplingParams
from braid.core.errors import BraidError
from braid.core.request import Delta
from braid.engine.protocol import GenerateRequest
from braid.runner.runner import RunnerTimes

SETTLE = 4
"""Tokens each stream must have before counting begins, so that no prefill is counted."""


class Reading(NamedTuple):
    clock: float
    times: RunnerTimes


class Meter:
    """Reads the runner's counters when the last stream has settled and when the first stream ends.

    Its callbacks run on the loop thread between two steps, so a reading never falls into a step.
    """

    def __init__(self, times: RunnerTimes, streams: int) -> None:
        self._times = times
        self._tokens = dict.fromkeys(map(str, range(streams)), 0)
        self._left = streams
        self.begin: Reading | None = None
        self.end: Reading | None = None
        self.error: BraidError | None = None
        self.finished = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        self._tokens[delta.request_id] += len(delta.token_ids)
        if self.begin is None and min(self._tokens.values()) >= SETTLE:
            self.begin = self._read()
        if delta.finish_reason is not None:
            self.end = self.end or self._read()
            self._left -= 1
            if self._left == 0:
                self.finished.set()

    def on_error(self, error: BraidError) -> None:
        self.error = error
        self.finished.set()

    def _read(self) -> Reading:
        return Reading(time.perf_counter(), dataclasses.replace(self._times))


def profile(llm: LLM, streams: int, prompt_tokens: int, new_tokens: int) -> list[dict[str, Any]]:
    """Milliseconds and share per part of a step in which ``streams`` requests decode.

    ``model`` and ``sampler`` are timed around the calls into torch and the native kernels; ``batch`` builds the
    tensors; ``loop`` is the rest: scheduling, bookkeeping, handing out tokens, and passing plans between threads.
    """
    core = llm._core  # the counters of the engine in this process
    meter = Meter(core.runner.times, streams)
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    for number in range(streams):
        prompt = tuple(random_prompt(prompt_tokens, llm.info.vocab_size, seed=10_000 + number))
        core.submit(GenerateRequest(str(number), prompt, params), meter.on_delta, meter.on_error)
    meter.finished.wait()
    if meter.error is not None:
        raise meter.error
    assert meter.begin is not None
    assert meter.end is not None
    return _rows(meter.begin, meter.end)


def _rows(begin: Reading, end: Reading) -> list[dict[str, Any]]:
    steps = end.times.steps - begin.times.steps
    wall = end.clock - begin.clock
    model = end.times.forward - begin.times.forward
    sampler = end.times.sample - begin.times.sample
    batch = end.times.build - begin.times.build
    loop = wall - model - sampler - batch
    parts = {
        "model": model,
        "sampler": sampler,
        "batch": batch,
        "loop": loop,
        "overhead (batch + loop)": batch + loop,
    }
    parts["whole step"] = wall
    return [
        {"part": name, "ms": 1e3 * part / steps, "share": f"{part / wall:.1%}"}
        for name, part in parts.items()
    ]
