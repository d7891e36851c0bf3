"""From a checked request to a generation: render, tokenise, check against the engine's limits, take a share.

Every dialect ends here, so that limits, identity and quotas hold on all of them alike.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request

from braid import __version__
from braid.core.constraint import Constraint
from braid.core.errors import InvalidParameterError
from braid.core.request import NO_SLO, Slo
from braid.core.sampling import SamplingParams
from braid.server.config import ServerContext
from braid.server.embed import Embedding, EmbedRequest
from braid.server.encode import PromptEncoder, Tokens, check_context, check_length, engine_info
from braid.server.errors import HttpError
from braid.server.generate import Call, Generation
from braid.server.guard.body import echo
from braid.server.guard.quota import Quotas
from braid.server.lifecycle import RECORD, Lifecycle, RequestRecord
from braid.server.observe.metrics import ServerMetrics
from braid.server.observe.report import CallReport
from braid.server.programs.boundaries import boundaries, marked_messages
from braid.server.programs.registry import Plan, Programs, Told
from braid.server.programs.registry import Result as TurnResult
from braid.server.programs.volatile import strip
from braid.server.prompts import (
    check_messages,
    check_prompt_logprobs,
    check_sequences,
    check_token_ids,
    render_turn,
)
from braid.server.slo import with_headers
from braid.server.turn import Turn, TurnRequest
from braid.text.reply import ReplyReader

FINGERPRINT = f"braid-{__version__}"

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """A checked request for the continuation of given texts.

    Args:
        default_max_tokens: output limit where ``params`` sets none; None goes on to the end of the context.
    """

    model: str | None = None
    prompts: tuple[Tokens, ...]
    params: SamplingParams
    default_max_tokens: int | None = None
    return_token_ids: bool = False
    cache_salt: str = ""
    priority: int = 0
    slo: Slo = NO_SLO
    id_prefix: str = "cmpl-"
    param: str = "prompt"


class _Read(NamedTuple):
    """What a conversation became before anything was checked against the engine's limits.

    ``constraint`` is the grammar of the whole output; there is one reader for each choice. ``num_stripped`` billing
    lines were left out.
    """

    prompt: Tokens
    told: Told
    num_stripped: int
    constraint: Constraint | None
    readers: list[ReplyReader]


class Pipeline:
    """What the dialects share. One per application."""

    def __init__(
        self,
        context: ServerContext,
        encoder: PromptEncoder,
        lifecycle: Lifecycle,
        metrics: ServerMetrics,
        quotas: Quotas,
    ) -> None:
        self.context = context
        self.encoder = encoder
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.quotas = quotas
        self.programs = Programs(context.config, acted_on=self._acted_on)
        self._plain_opening: int | None = None

    def _acted_on(self) -> frozenset[str]:
        info = self.context.engine.info
        return frozenset() if info is None else frozenset(info.acts_on)

    def served_name(self, model: str | None) -> str:
        """The name to answer with; a client may leave the model out.

        Raises:
            HttpError: 404 listing the served names.
        """
        names = self.context.served_model_names
        if model is None:
            return names[0]
        if model not in names:
            message = f"model {echo(model)} is not served; served: {', '.join(names)}"
            raise HttpError(404, message, param="model", code="model_not_found")
        return model

    async def off_loop(self, size: int, work: Callable[[], Result]) -> Result:
        """See ``PromptEncoder.off_loop``."""
        return await self.encoder.off_loop(size, work)

    async def turn(self, request: Request, wanted: TurnRequest) -> Turn:
        """Render and tokenise the conversation; nothing has been asked of the engine yet.

        Raises:
            HttpError, InvalidParameterError: what the model, the context or the quotas do not admit.
        """
        context = self.context
        engine_info(context)
        check_messages(context, wanted.messages, wanted.tools)
        read = await self.off_loop(wanted.size, lambda: self._read(request, wanted))
        self.metrics.volatile_lines.inc(read.num_stripped)
        call, plan = self._call(
            request,
            wanted,
            (read.prompt,),
            read.told,
            constraint=read.constraint,
            keep_special=self._keep_special(),
            default=wanted.default_max_tokens,
        )
        generation = self._generation(request, call, plan, reads_text=False, fences=not wanted.tools)
        return Turn(generation, read.readers, wanted.max_calls)

    async def text(self, request: Request, wanted: TextRequest) -> Generation:
        """A generation for given prompts.

        Raises:
            HttpError, InvalidParameterError: what the context or the quotas do not admit.
        """
        told = self.programs.read(record_of(request), request.scope["headers"])
        call, plan = self._call(request, wanted, wanted.prompts, told, default=wanted.default_max_tokens)
        return self._generation(request, call, plan)

    def embed(self, request: Request, wanted: EmbedRequest) -> Embedding:
        """Vectors of given texts; nothing has been asked of the engine yet.

        Raises:
            InvalidParameterError: the model makes no embeddings, or a token id is not in its vocabulary.
        """
        info = engine_info(self.context)
        if info.pooling is None:
            message = "this model makes no embeddings; start the server with --pooling last or --pooling mean"
            raise InvalidParameterError(message, param="model")
        for tokens in wanted.inputs:
            check_token_ids(tokens, info.vocab_size, wanted.param)
        record = record_of(request)
        report = CallReport(
            id=f"{wanted.id_prefix}{uuid.uuid4().hex}",
            model=self.served_name(wanted.model),
            prompts=wanted.inputs,
            n=1,
            cache_salt=_salt(record.principal.salt, wanted.cache_salt),
            start=record.start,
        )
        embedding = Embedding(
            wanted,
            report,
            self.context.engine,
            self.metrics,
            pooling=info.pooling,
            admit=lambda: self.quotas.enter(
                record.principal, embedding.num_sequences, embedding.usage.num_prompt_tokens
            ),
        )
        record.usage, record.call = (lambda: embedding.usage), report
        return embedding

    async def count(self, wanted: TurnRequest) -> int:
        """Prompt tokens of a conversation."""
        check_messages(self.context, wanted.messages, wanted.tools)
        prompt, _ = await self.off_loop(wanted.size, lambda: self._encode(wanted))
        return len(prompt)

    def _read(self, request: Request, wanted: TurnRequest) -> _Read:
        """All that grows with what was sent. May run in a worker thread."""
        told = self.programs.read(record_of(request), request.scope["headers"])
        num_stripped = 0
        if self.context.config.strip_volatile_line:
            messages, breakpoints, num_stripped = strip(wanted.messages, wanted.breakpoints)
            if num_stripped:
                wanted = replace(wanted, messages=messages, breakpoints=breakpoints)
        prompt, text = self._encode(wanted)
        check_length(len(prompt), engine_info(self.context).max_model_len, wanted.param)
        told = self.programs.look(told, prompt, self._opening(wanted))
        if marked_messages(wanted):
            token_bytes = self.context.tokenizer.token_bytes
            ends = boundaries(wanted, prompt, text, render=self._render, token_bytes=token_bytes)
            told = told._replace(boundaries=ends)
        reply_format = self.context.reply_format
        constraint = reply_format.constraint(
            tools=wanted.tools,
            choice=wanted.tool_choice,
            parallel=wanted.max_calls != 1,
            answer=wanted.constraint,
            prompt=text,
        )
        tools = () if wanted.tool_choice.mode == "none" else wanted.tools
        readers = [reply_format.reader(prompt=text, tools=tools) for _ in range(wanted.params.n)]
        return _Read(prompt, told, num_stripped, constraint, readers)

    def _opening(self, wanted: TurnRequest) -> int:
        """Tokens at the end of a prompt that only open the answer; thoughts switched off, say, make them others."""
        if not wanted.add_generation_prompt or wanted.continue_final_message:
            return 0
        if wanted.template:
            return self._opening_with(wanted.template)
        if self._plain_opening is None:
            self._plain_opening = self._opening_with({})
        return self._plain_opening

    def _opening_with(self, template: Mapping[str, Any]) -> int:
        probe = TurnRequest(
            messages=[{"role": "user", "content": "x"}], params=SamplingParams(), template=template
        )
        try:
            opened = self._render(probe)
            closed = self._render(replace(probe, add_generation_prompt=False))
        except InvalidParameterError:
            return 0
        return len(self._encode_text(opened[len(closed) :])) if opened.startswith(closed) else 0

    def _render(self, wanted: TurnRequest) -> str:
        return render_turn(self.context, wanted)

    def _encode_text(self, text: str) -> Tokens:
        return self.encoder.encode(text, "messages", add_special_tokens=False)

    def _encode(self, wanted: TurnRequest) -> tuple[Tokens, str]:
        text = render_turn(self.context, wanted)
        return self.encoder.encode(text, wanted.param, add_special_tokens=False), text

    def _keep_special(self) -> frozenset[int]:
        token_id = self.context.tokenizer.token_id
        ids = (token_id(token) for token in self.context.reply_format.special_tokens)
        return frozenset(id for id in ids if id is not None)

    def _call(
        self,
        request: Request,
        wanted: TurnRequest | TextRequest,
        prompts: tuple[Tokens, ...],
        told: Told,
        *,
        default: int | None,
        constraint: Constraint | None = None,
        keep_special: frozenset[int] = frozenset(),
    ) -> tuple[Call, Plan]:
        info = engine_info(self.context)
        params = wanted.params if constraint is None else replace(wanted.params, constraint=constraint)
        check_sequences(len(prompts), params.n, self.context.config.max_sequences)
        if params.prompt_logprobs is not None:
            check_prompt_logprobs(sum(map(len, prompts)) * params.n, params.prompt_logprobs)
        lengths = tuple(
            check_context(len(prompt), params.max_tokens, info.max_model_len, wanted.param, default)
            for prompt in prompts
        )
        for prompt in prompts:
            check_token_ids(prompt, info.vocab_size, wanted.param)
        check_token_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
        check_token_ids(tuple(params.logit_bias), info.vocab_size, "logit_bias")
        record = record_of(request)
        if told.prompt is None and len(prompts) == 1:
            told = self.programs.look(told, prompts[0], 0)
        plan = self.programs.plan(told)
        record.program = plan.program
        call = Call(
            id=f"{wanted.id_prefix}{uuid.uuid4().hex}",
            model=self.served_name(wanted.model),
            created=int(time.time()),
            prompts=prompts,
            max_tokens=lengths,
            params=params,
            cache_salt=_salt(record.principal.salt, wanted.cache_salt),
            arrival=record.start,
            return_token_ids=wanted.return_token_ids,
            keep_special=keep_special,
            priority=wanted.priority,
            program=plan.program,
            intent=told.intent,
            slo=with_headers(wanted.slo, request.headers),
        )
        return call, plan

    def _generation(
        self, request: Request, call: Call, plan: Plan, *, reads_text: bool = True, fences: bool = True
    ) -> Generation:
        record = record_of(request)
        num_tokens = sum(len(prompt) for prompt in call.prompts)
        num_sequences = len(call.prompts) * call.params.n

        @contextmanager
        def admitted() -> Iterator[None]:
            block_size = engine_info(self.context).block_size
            with (
                self.quotas.enter(record.principal, num_sequences, num_tokens),
                self.programs.running(plan, result, block_size),
            ):
                yield

        def result() -> TurnResult:
            return TurnResult(generation.outputs, generation.finished, generation.usage)

        generation = Generation(
            call,
            self.context.engine,
            self.context.tokenizer,
            self.metrics,
            admit=admitted,
            reads_text=reads_text,
            fences=fences,
        )
        record.usage = lambda: generation.usage
        record.call = generation.report
        return generation


def record_of(request: Request) -> RequestRecord:
    """What the gate noted of this request."""
    record: RequestRecord = request.scope[RECORD]
    return record


def _salt(own: str, asked: str) -> str:
    """Blocks are shared within one principal only, and there among requests of equal ``cache_salt``."""
    return f"{own}\0{asked}" if own else asked
