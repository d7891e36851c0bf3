"""Embeddings: OpenAI's dialect."""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from braid.core.errors import InvalidParameterError
from braid.server.dialects.fields import note_ignored, refuse, warning_header
from braid.server.dialects.schemas import check_common
from braid.server.embed import Embedding, EmbedRequest, Vector, shorten
from braid.server.encode import engine_info
from braid.server.errors import json_response
from braid.server.guard.body import echo, read_json
from braid.server.pipeline import Pipeline, record_of
from braid.server.prompts import completion_prompts

MAX_INPUTS = 2048
EMBEDDING_UNSUPPORTED = ("messages", "truncate_prompt_tokens")


class EmbeddingRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str | None = None
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    # Accepted without effect on the vectors.
    user: str | None = None


class EmbeddingRoutes:
    """``/v1/embeddings``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def embeddings(self, request: Request) -> Response:
        pipeline, context = self._pipeline, self._pipeline.context
        fields, body, size = await read_json(request, EmbeddingRequest, context.config)
        model = pipeline.served_name(fields.model)
        refuse(EMBEDDING_UNSUPPORTED, body)
        check_common(fields.priority, fields.cache_salt)
        warnings = record_of(request).warnings
        warnings += note_ignored(pipeline.metrics, fields, body)
        wanted = await pipeline.off_loop(size, lambda: self._wanted(fields))
        embedding = pipeline.embed(request, wanted)
        self._check_dimensions(fields.dimensions)
        async with pipeline.lifecycle.watch(request.receive):
            vectors = await embedding.vectors()
            many = sum(map(len, vectors))  # numbers, each of which takes a byte or more
            return await pipeline.off_loop(
                many,
                lambda: json_response(
                    _answer(fields, model, embedding, vectors), headers=warning_header(warnings)
                ),
            )

    def _check_dimensions(self, dimensions: int | None) -> None:
        size = engine_info(self._pipeline.context).hidden_size
        if dimensions is not None and not 1 <= dimensions <= size:
            message = f"dimensions must be in [1, {size}], got {echo(dimensions)}"
            raise InvalidParameterError(message, param="dimensions")

    def _wanted(self, fields: EmbeddingRequest) -> EmbedRequest:
        inputs = completion_prompts(
            self._pipeline.context,
            self._pipeline.encoder,
            fields.input,
            fields.add_special_tokens is not False,
            param="input",
            limit=MAX_INPUTS,
        )
        return EmbedRequest(
            model=fields.model,
            inputs=inputs,
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
        )


def _answer(
    fields: EmbeddingRequest, model: str, embedding: Embedding, vectors: list[Vector]
) -> dict[str, Any]:
    usage = embedding.usage
    spell = _base64 if fields.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": spell(shorten(vector, fields.dimensions))}
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {
            "prompt_tokens": usage.num_prompt_tokens,
            "total_tokens": usage.num_prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        },
    }


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as clients decode it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
