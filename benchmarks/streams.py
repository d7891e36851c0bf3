"""Requests put straight into an engine of this process, with the moment of every token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from braid import LLM, SamplingParams
from braid.core.constraint import Constraint
from braid.core.errors import BraidError
from braid.core.request import Delta
from braid.engine.protocol import GenerateRequest

Times = list[list[float]]
"""Per stream, seconds from the start to each of its tokens."""

_numbers = count()


def run_streams(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    on_token: Callable[[Times], None] | None = None,
    constraint: Constraint | None = None,
) -> Times:
    """Generate greedily for all prompts at once, under ``constraint`` if there is one; end-of-sequence is ignored.

    ``on_token`` looks at the times so far, on the loop's thread, between two steps.
    """
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, constraint=constraint)
    core = llm._core  # a benchmark may look inside: text and queues on the way out are not what is measured
    streams: dict[str, list[float]] = {f"bench-{next(_numbers)}": [] for _ in prompts}
    times = list(streams.values())
    left = threading.Semaphore(0)
    errors: list[BraidError] = []
    begin = time.perf_counter()

    def on_delta(delta: Delta) -> None:
        streams[delta.request_id].extend([time.perf_counter() - begin] * len(delta.token_ids))
        if on_token is not None:
            on_token(times)
        if delta.finish_reason is not None:
            left.release()

    def on_error(error: BraidError) -> None:
        errors.append(error)
        left.release()

    for request_id, prompt in zip(streams, prompts, strict=True):
        core.submit(GenerateRequest(request_id, tuple(prompt), params), on_delta, on_error)
    for _ in prompts:
        left.acquire()
    if errors:
        raise errors[0]
    return times
