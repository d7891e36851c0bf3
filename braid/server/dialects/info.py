"""The routes that tell: models, token ids, health, version, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid import __version__
from braid.core.errors import EngineDeadError, InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.server.dialects.schemas import DetokenizeRequest, TokenizeRequest
from braid.server.dialects.tools import as_function_calls, parse_tools
from braid.server.encode import Tokens, engine_info
from braid.server.errors import json_response, unavailable
from braid.server.guard.body import read_json
from braid.server.lifecycle import shutting_down
from braid.server.observe.metrics import CONTENT_TYPE, Gauges
from braid.server.pipeline import Pipeline
from braid.server.prompts import check_messages, check_token_ids, render_turn
from braid.server.turn import TurnRequest

_LOADING_RETRY_SECONDS = 2.0
_STATS_TIMEOUT = 2.0


class InfoRoutes:
    """Everything that generates no text."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._context = pipeline.context
        self._encoder = pipeline.encoder
        self._lifecycle = pipeline.lifecycle
        self._metrics = pipeline.metrics

    async def health(self, request: Request) -> Response:
        """Alive: this process answers, and its engine has not died. One that still loads is alive, but not ready."""
        engine = self._context.engine
        if engine.info is not None and not engine.is_ready and not self._lifecycle.draining:
            raise unavailable(engine.down_reason, retry_after=_LOADING_RETRY_SECONDS, code="engine_down")
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self._lifecycle.draining:
            raise shutting_down()
        engine = self._context.engine
        if not engine.is_ready:
            raise unavailable(engine.down_reason, retry_after=_LOADING_RETRY_SECONDS, code="not_ready")
        return json_response({"status": "ready"})

    async def version(self, request: Request) -> Response:
        info = self._context.engine.info
        engine = {} if info is None else {"torch": info.torch_version, "kernels": info.kernels}
        name = self._context.served_model_names[0]
        return json_response({"version": __version__, "model": name, **engine})

    async def metrics(self, request: Request) -> Response:
        engine = self._context.engine
        try:
            async with asyncio.timeout(_STATS_TIMEOUT):
                stats = await engine.stats()
        except (EngineDeadError, TimeoutError):
            stats = None
        gauges = Gauges(engine.is_ready, engine.restarts, engine.info, stats)
        return Response(self._metrics.render(gauges), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        data = [self._model(name) for name in self._context.served_model_names]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        return json_response(self._model(self._pipeline.served_name(request.path_params["name"])))

    def _model(self, name: str) -> dict[str, Any]:
        info = self._context.engine.info
        return {
            "id": name,
            "object": "model",
            "created": self._context.created,
            "owned_by": "braid",
            "root": self._context.served_model_names[0] if info is None else info.model,
            "max_model_len": None if info is None else info.max_model_len,
        }

    async def tokenize(self, request: Request) -> Response:
        context = self._context
        fields, body, size = await read_json(request, TokenizeRequest, context.config)
        self._pipeline.served_name(fields.model)
        fields.check(body)
        return await self._encoder.off_loop(size, lambda: json_response(self._tokenized(fields)))

    def _tokenized(self, fields: TokenizeRequest) -> dict[str, Any]:
        context = self._context
        tokens = self._tokens(fields)
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": engine_info(context).max_model_len,
            "tokens": tokens,
        }
        if fields.return_token_strs:
            answer["token_strs"] = [context.tokenizer.token_text(token) for token in tokens]
        return answer

    def _tokens(self, fields: TokenizeRequest) -> Tokens:
        if (fields.prompt is None) == (fields.messages is None):
            raise InvalidParameterError("give either prompt or messages", param="prompt")
        if fields.messages is not None:
            tools, _ = parse_tools(fields.tools)
            messages = as_function_calls(fields.messages)
            check_messages(self._context, messages, tools)
            wanted = TurnRequest(
                messages=messages,
                tools=tools,
                params=SamplingParams(),
                template=fields.template_variables(),
                add_generation_prompt=fields.add_generation_prompt is not False,
                continue_final_message=bool(fields.continue_final_message),
            )
            text = render_turn(self._context, wanted)
            return self._encoder.encode(text, "messages", add_special_tokens=False)
        special = fields.add_special_tokens is not False
        return self._encoder.encode(fields.prompt or "", "prompt", add_special_tokens=special)

    async def detokenize(self, request: Request) -> Response:
        context = self._context
        fields, _, size = await read_json(request, DetokenizeRequest, context.config)
        self._pipeline.served_name(fields.model)
        info = engine_info(context)
        if len(fields.tokens) > info.max_model_len:
            message = f"tokens has {len(fields.tokens)} ids, the model's context is {info.max_model_len}"
            raise InvalidParameterError(message, param="tokens")
        check_token_ids(fields.tokens, info.vocab_size, "tokens")
        decode = context.tokenizer.decode
        text = await self._encoder.off_loop(size, lambda: decode(fields.tokens, skip_special_tokens=False))
        return json_response({"prompt": text})
