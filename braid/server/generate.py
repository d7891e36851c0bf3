"""One internal request for every dialect: its sequences, run by the engine and merged into one stream of choices."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Any

from braid.core.errors import EngineDeadError
from braid.core.program import ProgramRef, RetainIntent
from braid.core.request import NO_SLO, PhaseTimes, Slo, TokenLogprobs
from braid.core.sampling import SamplingParams
from braid.engine.protocol import EngineClient, GenerateRequest
from braid.server.decode import ChoiceDecoder, ChoiceDelta
from braid.server.lifecycle import Usage, is_cancelled
from braid.server.observe.metrics import SequenceTimer, ServerMetrics
from braid.server.observe.report import CallReport
from braid.server.programs.endings import ChoiceEnding, combined
from braid.text.reply import Content
from braid.text.tokenizer import Tokenizer

_MERGE_BUFFER = 64

Choices = AsyncGenerator[ChoiceDelta, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a client asked for, whatever the dialect: ``len(prompts) * params.n`` sequences.

    ``max_tokens`` has the output limit of each prompt; ``arrival`` is on the ``perf_counter`` clock.
    """

    id: str
    model: str
    created: int
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]
    params: SamplingParams
    cache_salt: str
    arrival: float
    return_token_ids: bool
    keep_special: frozenset[int] = frozenset()
    """Special tokens that are part of the text."""
    priority: int = 0
    program: ProgramRef | None = None
    intent: RetainIntent | None = None
    slo: Slo = NO_SLO

    def sequences(self) -> list[GenerateRequest]:
        """Choice ``i`` is output ``i % n`` of prompt ``i // n``; every sequence has an id of its own."""
        n = self.params.n
        outputs = [self.params.child(output) for output in range(n)] if n > 1 else [self.params]
        return [
            GenerateRequest(
                request_id=f"{self.id}-{prompt * n + output}",
                prompt_token_ids=self.prompts[prompt],
                params=replace(outputs[output], max_tokens=self.max_tokens[prompt]),
                cache_salt=self.cache_salt,
                priority=self.priority,
                program=self.program,
                intent=self.intent,
                slo=self.slo,
            )
            for prompt in range(len(self.prompts))
            for output in range(n)
        ]


def usage_payload(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object: prompt tokens include the cached ones."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": usage.num_written_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
    }


class Generation:
    """A call on its way: iterate over ``choices()`` once, then read ``usage``.

    ``admit`` takes the call's share of the quotas when the first choice is asked for; it is given back when they end.

    Args:
        reads_text: the text is the answer as it stands; if not, whoever reads it also fills ``endings``.
        fences: see ``ChoiceEnding``.
    """

    def __init__(
        self,
        call: Call,
        engine: EngineClient,
        tokenizer: Tokenizer,
        metrics: ServerMetrics,
        admit: Callable[[], AbstractContextManager[object]],
        *,
        reads_text: bool = True,
        fences: bool = True,
    ) -> None:
        self.call = call
        self.num_reasoning_tokens = 0
        """Counted by whoever reads the text."""
        self._engine = engine
        self._metrics = metrics
        self._admit = admit
        self._ended: set[int] = set()
        self.outputs = [array("I") for _ in range(len(call.prompts) * call.params.n)]
        """The tokens of each choice so far."""
        self._sequences = call.sequences()
        self.endings = [ChoiceEnding(fences=fences) for _ in self._sequences]
        """How each choice has ended."""
        self._reads_text = reads_text
        self.report = _report(call)
        """What the logs tell of this call."""
        self._decoders = [
            ChoiceDecoder(
                tokenizer,
                sequence.params,
                index,
                keep_tokens=call.return_token_ids,
                keep_special=call.keep_special,
            )
            for index, sequence in enumerate(self._sequences)
        ]

    @property
    def num_choices(self) -> int:
        return len(self._sequences)

    @property
    def usage(self) -> Usage:
        """A prompt counts once, however many outputs it has; so do its cached tokens."""
        prompts = sum(len(prompt) for prompt in self.call.prompts)
        outputs = sum(decoder.num_tokens for decoder in self._decoders)
        cached = sum(decoder.num_cached_tokens for decoder in self._decoders[:: self.call.params.n])
        return Usage(prompts, outputs, cached, self._written(), self.num_reasoning_tokens)

    def _written(self) -> int:
        """Whole blocks of the prompts that were not there before: those are what the prefix cache keeps."""
        info = self._engine.info
        size = info.block_size if info is not None else 1
        decoders = self._decoders[:: self.call.params.n]
        return sum(
            max(0, len(prompt) // size * size - decoder.num_cached_tokens)
            for prompt, decoder in zip(self.call.prompts, decoders, strict=True)
            if decoder.num_tokens
        )

    def prompt_logprobs(self, number: int) -> tuple[TokenLogprobs | None, ...] | None:
        """Of the prompt that this choice continues; there with its first delta, where they were asked for."""
        return self._decoders[number].prompt_logprobs

    @property
    def finished(self) -> bool:
        """Whether any choice has come to its end."""
        return bool(self._ended) or any(decoder.finish_reason is not None for decoder in self._decoders)

    def end(self, number: int) -> None:
        """No more of this choice is wanted; the others go on."""
        self._ended.add(number)

    async def choices(self) -> Choices:
        """Deltas of all choices as they come. Closing the generator aborts every sequence.

        Raises:
            HttpError: 429 or 503, where the quotas do not admit the call.
        """
        with self._admit():
            merged = merge([self._run(index) for index in range(self.num_choices)])
            async with aclosing(merged):
                async for choice in merged:
                    if self._reads_text:
                        self._read(choice)
                    yield choice
            await self._tell()

    def _read(self, choice: ChoiceDelta) -> None:
        ending = self.endings[choice.number]
        ending.add([Content(choice.text)])
        if choice.finish_reason is not None:
            ending.end(choice.finish_reason, choice.stop_reason)

    async def _tell(self) -> None:
        """Tell the engine how the turn has ended. Several prompts are no turn, and of a last one nobody asks."""
        program = self.call.program
        if program is None or program.final or len(self.call.prompts) > 1:
            return
        ending = combined(self.endings)
        if ending is not None:
            await self._engine.told(program, ending.finish, ending.tool)

    async def _run(self, index: int) -> Choices:
        sequence, decoder = self._sequences[index], self._decoders[index]
        timer = SequenceTimer(self._metrics, self.report, index, sequence.slo)
        reason = "error"
        times: PhaseTimes | None = None
        deltas = self._engine.generate(sequence)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    timer.tokens(len(delta.token_ids))
                    times = delta.times
                    known = decoder.num_tokens
                    choice = decoder.push(delta)
                    self.outputs[index].extend(delta.token_ids[: decoder.num_tokens - known])
                    if choice is not None:
                        yield choice
                    if decoder.finish_reason is not None or index in self._ended:
                        reason = decoder.finish_reason or "stop"
                        return
            raise EngineDeadError("the engine ended a request without a reason")
        except asyncio.CancelledError:
            if not is_cancelled():
                raise EngineDeadError("the engine cancelled a request that nobody gave up") from None
            reason = decoder.finish_reason or "abort"
            raise
        except GeneratorExit:
            reason = decoder.finish_reason or "abort"
            raise
        finally:
            timer.finish(
                reason,
                num_prompt_tokens=len(sequence.prompt_token_ids),
                num_tokens=decoder.num_tokens,
                num_cached_tokens=decoder.num_cached_tokens,
                times=times,
            )


def _report(call: Call) -> CallReport:
    constraint = call.params.constraint
    return CallReport(
        id=call.id,
        model=call.model,
        prompts=call.prompts,
        n=call.params.n,
        cache_salt=call.cache_salt,
        start=call.arrival,
        program=call.program,
        constraint=None if constraint is None else constraint.kind.value,
    )


def merge(streams: Sequence[Choices]) -> Choices:
    """Items of all streams as they come; the first error ends them all."""
    return streams[0] if len(streams) == 1 else _merged(streams)


async def _merged(streams: Sequence[Choices]) -> Choices:
    queue: asyncio.Queue[ChoiceDelta | Exception | None] = asyncio.Queue(_MERGE_BUFFER)
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            got = await queue.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(stream: Choices, queue: asyncio.Queue[ChoiceDelta | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)
        await queue.put(None)
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        await queue.put(EngineDeadError("a stream was cancelled that nobody gave up"))
    except Exception as error:
        await queue.put(error)
