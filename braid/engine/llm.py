"""The Python API: an engine in this process, without HTTP. Needs torch, safetensors, tokenizers and numpy only."""

from __future__ import annotations

import itertools
import queue
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.progress import Progress
from braid.checkpoint.resolve import resolve
from braid.core.config import DEFAULT_MODEL, EngineConfig
from braid.core.errors import BraidError, InvalidParameterError
from braid.core.request import Delta, FinishReason, TokenLogprobs
from braid.core.sampling import SamplingParams
from braid.engine.build import Built, build_engine
from braid.engine.local import LocalClient
from braid.engine.protocol import EngineInfo, EngineStats, GenerateRequest
from braid.text.stream import TextStream
from braid.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from braid.text.template import ChatTemplate

Prompt = str | Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One output of a prompt.

    ``logprobs`` has one entry per token where they were asked for. ``stop_reason`` is the stop string or stop
    token id that ended it, if one did.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOutput:
    """All outputs of one prompt; the short names read the first.

    ``prompt_logprobs`` has one entry per prompt token, None for the first, where they were asked for.
    """

    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return self.outputs[0].logprobs

    @property
    def num_cached_tokens(self) -> int:
        return self.outputs[0].num_cached_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingOutput:
    """One prompt as a vector of length 1."""

    prompt_token_ids: tuple[int, ...]
    embedding: tuple[float, ...]


class StreamOutput(NamedTuple):
    """What a stream gained: new text and tokens; the last one carries ``finish_reason``."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: str | None
    stop_reason: int | str | None


class Assembler:
    """Builds one output from its deltas: text, stop strings, tokens."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, index: int = 0) -> None:
        self._stream = TextStream(tokenizer, params)
        self._index = index
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self._num_cached_tokens = 0
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self.embedding: tuple[float, ...] | None = None
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None

    def push(self, delta: Delta) -> StreamOutput:
        """Take a delta in; after it ``finish_reason`` is set if the output is complete.

        Raises:
            BraidError: this request failed in the engine.
        """
        if delta.finish_reason is FinishReason.ERROR:
            raise BraidError(delta.error or "the request failed in the engine")
        self._num_cached_tokens = delta.num_cached_tokens
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.embedding = delta.embedding or self.embedding
        text, stopped, consumed = self._stream.push(delta.token_ids)
        token_ids = delta.token_ids[:consumed]
        logprobs = None if delta.logprobs is None else delta.logprobs[:consumed]
        self._token_ids.extend(token_ids)
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.extend(logprobs)
        if stopped is not None:
            self.finish_reason, self._stop_reason = FinishReason.STOP.value, stopped
        elif delta.finish_reason is not None:
            self.finish_reason, self._stop_reason = delta.finish_reason.value, delta.stop_reason
            text += self._stream.finish()
        return StreamOutput(text, token_ids, logprobs, self.finish_reason, self._stop_reason)

    def result(self) -> Completion:
        """The finished output."""
        assert self.finish_reason is not None, "result() before the end"
        return Completion(
            index=self._index,
            text=self._stream.text,
            token_ids=tuple(self._token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            num_cached_tokens=self._num_cached_tokens,
        )


class _Model:
    """What the two fronts share: the engine, the tokenizer, and prompts to token ids."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        dtype: str = "auto",
        device: str = "auto",
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        config = EngineConfig(model=model, dtype=dtype, device=device, **options)
        self._checkpoint: Checkpoint = open_checkpoint(
            resolve(config.model, progress=progress, offline=config.offline)
        )
        self.tokenizer: Tokenizer = load_tokenizer(self._checkpoint)
        self._built: Built = build_engine(
            config,
            eos_token_ids=self.tokenizer.eos_token_ids,
            checkpoint=self._checkpoint,
            progress=progress,
        )
        self._core = self._built.core
        self._core.start()
        self._ids = itertools.count()

    @property
    def info(self) -> EngineInfo:
        """Model, device, limits and kernels of the running engine."""
        return self._core.info

    @property
    def reckoning(self) -> list[str]:
        """How memory was sized, as printable lines."""
        return self._built.reckoning

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._core.close()

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt))
        ids = tuple(prompt)
        wrong = next((token for token in ids if not isinstance(token, int)), None)
        if wrong is not None:
            raise InvalidParameterError(
                f"a prompt is a string or a list of token ids, got {wrong!r}", param="prompt"
            )
        return ids

    def _render(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> tuple[int, ...]:
        text = self._chat_template.render(messages, **template)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        from braid.text.template import ChatTemplate  # minijinja is not needed by those who never chat

        tokenizer = self.tokenizer
        return ChatTemplate(
            tokenizer.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
        )

    def _request(
        self, prompt_token_ids: tuple[int, ...], params: SamplingParams, pooling: str | None = None
    ) -> GenerateRequest:
        return GenerateRequest(f"llm-{next(self._ids)}", prompt_token_ids, params, pooling=pooling)

    def _pooling(self) -> str:
        """How this model pools.

        Raises:
            InvalidParameterError: it makes no embeddings.
        """
        if self.info.pooling is None:
            raise InvalidParameterError(
                f"{self.info.model} makes no embeddings as it was started; pass pooling='last' or pooling='mean', "
                "whichever the model was trained for",
                param="model",
            )
        return self.info.pooling


class LLM(_Model):
    """A model to call from Python.

    Args:
        model: an alias, a folder, a ``.gguf`` file or a hub id.
        dtype: ``auto``, ``bfloat16`` or ``float32``.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: the other fields of ``braid.core.config.EngineConfig``.

    Raises:
        BraidError: the model cannot be found, read or fitted.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Generate for all prompts together; outputs stand in the prompts' order.

        Args:
            prompts: strings or lists of token ids (or a single one of either).
            params: one for all prompts or one for each; default ``SamplingParams()``.

        Raises:
            InvalidParameterError: a prompt or parameter is wrong; nothing has been generated then.
            BraidError: a request failed in the engine.
        """
        many = _as_prompts(prompts)
        each = _as_params(params, len(many))
        return self._generate([self._encode(prompt) for prompt in many], each)

    def embed(self, prompts: Prompt | Sequence[Prompt]) -> list[EmbeddingOutput]:
        """A vector of ``info.hidden_size`` numbers for each prompt, pooled as the model was trained for.

        Raises:
            InvalidParameterError: a prompt is wrong, or the model makes no embeddings.
            BraidError: a request failed in the engine.
        """
        pooling = self._pooling()
        ids = [self._encode(prompt) for prompt in _as_prompts(prompts)]
        done = self._run(ids, [SamplingParams()] * len(ids), pooling)
        return [
            EmbeddingOutput(prompt_token_ids=prompt, embedding=children[0].embedding or ())
            for prompt, children in zip(ids, done, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        **template: Any,
    ) -> RequestOutput:
        """Answer one conversation, rendered with the model's own chat template."""
        return self._generate([self._render(messages, **template)], _as_params(params, 1))[0]

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine."""
        return self._core.stats().result()

    def _generate(self, prompts: list[tuple[int, ...]], params: list[SamplingParams]) -> list[RequestOutput]:
        done = self._run(prompts, params)
        return [_output(ids, children) for ids, children in zip(prompts, done, strict=True)]

    def _run(
        self, prompts: list[tuple[int, ...]], params: list[SamplingParams], pooling: str | None = None
    ) -> list[list[Assembler]]:
        """Have all prompts worked on together until all have ended: per prompt its outputs."""
        inbox: queue.SimpleQueue[tuple[str, Delta | BraidError]] = queue.SimpleQueue()
        outputs: list[list[Assembler]] = []
        open_requests: dict[str, Assembler] = {}
        try:
            for ids, wanted in zip(prompts, params, strict=True):
                children = [Assembler(self.tokenizer, wanted, index) for index in range(wanted.n)]
                outputs.append(children)
                for index, child in enumerate(children):
                    request = self._request(ids, wanted.child(index), pooling)
                    open_requests[request.request_id] = child
                    self._submit(request, inbox)
            while open_requests:
                self._take(inbox.get(), open_requests)
        finally:
            for request_id in open_requests:
                self._core.abort(request_id)
        return outputs

    def _submit(
        self, request: GenerateRequest, inbox: queue.SimpleQueue[tuple[str, Delta | BraidError]]
    ) -> None:
        request_id = request.request_id

        def put(item: Delta | BraidError) -> None:
            inbox.put((request_id, item))

        self._core.submit(request, put, put)

    def _take(self, item: tuple[str, Delta | BraidError], open_requests: dict[str, Assembler]) -> None:
        request_id, outcome = item
        child = open_requests.get(request_id)
        if child is None:  # ended by a stop string; these are tokens that were on their way
            return
        if isinstance(outcome, BraidError):
            raise outcome
        child.push(outcome)
        if child.finish_reason is not None:
            del open_requests[request_id]
            if outcome.finish_reason is None:
                self._core.abort(request_id)


class AsyncLLM(_Model):
    """The asyncio twin of ``LLM``: streams, many at a time."""

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[StreamOutput]:
        """Yield text as it is generated (``n`` must be 1). Closing the iterator aborts the request.

        Raises:
            InvalidParameterError: the prompt or a parameter is wrong.
        """
        async for output in self._stream(self._encode(prompt), params or SamplingParams()):
            yield output

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **template: Any
    ) -> AsyncIterator[StreamOutput]:
        """Stream the answer to a conversation."""
        async for output in self._stream(self._render(messages, **template), params or SamplingParams()):
            yield output

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestOutput:
        """The whole output at once (``n`` must be 1)."""
        ids = self._encode(prompt)
        params = params or SamplingParams()
        assembler = Assembler(self.tokenizer, params)
        async for _ in self._stream(ids, params, assembler):
            pass
        return _output(ids, [assembler])

    async def stats(self) -> EngineStats:
        """Gauges and counters of the engine."""
        return await LocalClient(self._core).stats()

    async def _stream(
        self, ids: tuple[int, ...], params: SamplingParams, assembler: Assembler | None = None
    ) -> AsyncIterator[StreamOutput]:
        if params.n != 1:
            raise InvalidParameterError(
                f"a stream has one output, got n={params.n}; open n streams", param="n"
            )
        assembler = assembler or Assembler(self.tokenizer, params)
        deltas = LocalClient(self._core).generate(self._request(ids, params))
        try:
            async for delta in deltas:
                yield assembler.push(delta)
                if assembler.finish_reason is not None:
                    return
        finally:
            await deltas.aclose()


def _output(prompt_token_ids: tuple[int, ...], children: list[Assembler]) -> RequestOutput:
    return RequestOutput(
        prompt_token_ids=prompt_token_ids,
        outputs=tuple(child.result() for child in children),
        prompt_logprobs=children[0].prompt_logprobs,
    )


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    many = list(prompts)
    if many and all(isinstance(item, int) for item in many):
        return [many]  # type: ignore[list-item]
    return many  # type: ignore[return-value]


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidParameterError(
            f"got {len(params)} sampling parameters for {count} prompts", param="params"
        )
    return list(params)
