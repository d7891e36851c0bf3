"""Embeddings: many inputs through the engine, some at a time, each to one vector."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass

from braid.core.errors import EngineDeadError
from braid.core.request import FAILED, Delta
from braid.core.sampling import SamplingParams
from braid.engine.protocol import EngineClient, GenerateRequest
from braid.server.errors import RequestFailedError, failed
from braid.server.lifecycle import Usage, is_cancelled
from braid.server.observe.metrics import SequenceTimer, ServerMetrics
from braid.server.observe.report import CallReport

MAX_CONCURRENT = 32
"""Inputs of one request that are at the engine at a time; the others wait here, where they cost nothing."""

_PARAMS = SamplingParams(max_tokens=1, temperature=0)

Vector = Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """A checked request for vectors of given texts."""

    model: str | None = None
    inputs: tuple[tuple[int, ...], ...]
    cache_salt: str = ""
    priority: int = 0
    id_prefix: str = "embd-"
    param: str = "input"


class Embedding:
    """A call on its way: ask for ``vectors()`` once, then read ``usage``.

    Args:
        pooling: how the engine makes one vector of a prompt's hidden states.
        admit: takes the call's share of the quotas.
    """

    def __init__(
        self,
        wanted: EmbedRequest,
        report: CallReport,
        engine: EngineClient,
        metrics: ServerMetrics,
        *,
        pooling: str,
        admit: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.report = report
        self._wanted = wanted
        self._engine = engine
        self._metrics = metrics
        self._pooling = pooling
        self._admit = admit
        self._num_cached_tokens = 0

    @property
    def num_sequences(self) -> int:
        """Inputs that are under way at a time."""
        return min(len(self._wanted.inputs), MAX_CONCURRENT)

    @property
    def usage(self) -> Usage:
        return Usage(sum(map(len, self._wanted.inputs)), 0, self._num_cached_tokens)

    async def vectors(self) -> list[Vector]:
        """One vector per input, in order. The first error ends them all.

        Raises:
            HttpError: 429 or 503, where the quotas do not admit the call.
            RequestFailedError, EngineDeadError: the engine failed.
        """
        out: list[Vector] = [()] * len(self._wanted.inputs)
        left = iter(range(len(out)))
        with self._admit():
            tasks = [asyncio.create_task(self._work(left, out)) for _ in range(self.num_sequences)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return out

    async def _work(self, left: Iterator[int], out: list[Vector]) -> None:
        for index in left:
            out[index] = await self._one(index)

    async def _one(self, index: int) -> Vector:
        tokens = self._wanted.inputs[index]
        timer = SequenceTimer(self._metrics, self.report, index)
        reason, cached = "error", 0
        try:
            delta = await self._ask(index, tokens)
            reason, cached = "stop", delta.num_cached_tokens
            self._num_cached_tokens += cached
            return _vector(delta)
        except asyncio.CancelledError:
            if not is_cancelled():
                raise EngineDeadError("the engine cancelled a request that nobody gave up") from None
            reason = "abort"
            raise
        finally:
            timer.finish(reason, num_prompt_tokens=len(tokens), num_tokens=0, num_cached_tokens=cached)

    async def _ask(self, index: int, tokens: tuple[int, ...]) -> Delta:
        """The engine's last word on one input."""
        request = GenerateRequest(
            request_id=f"{self.report.id}-{index}",
            prompt_token_ids=tokens,
            params=_PARAMS,
            priority=self._wanted.priority,
            cache_salt=self.report.cache_salt,
            pooling=self._pooling,
        )
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                if delta.finish_reason in FAILED:
                    raise failed(delta)
                if delta.finish_reason is not None:
                    return delta
        raise EngineDeadError("the engine ended a request without a reason")


def _vector(delta: Delta) -> Vector:
    if delta.embedding is None:
        raise RequestFailedError("the engine made no embedding")
    return delta.embedding


def shorten(vector: Vector, dimensions: int | None) -> list[float]:
    """The first ``dimensions`` numbers (None: all), brought to length 1."""
    kept = vector[:dimensions]
    length = math.hypot(*kept)
    return [value / length for value in kept] if length > 0 else list(kept)
