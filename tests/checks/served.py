"""Applications around a scripted engine or a real one, for checks that need more than one kind of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from starlette.applications import Starlette

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.config import EngineConfig
from braid.engine.client import ProcessClient
from braid.engine.protocol import EngineStats
from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.observe.config import ObserveConfig
from braid.text.detect import detect_format
from braid.text.reply_format import PlainFormat, ReplyFormat
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer, load_tokenizer

from ..server.conftest import TEMPLATE, FakeEngine, _write_byte_model

PATIENCE = 60.0
SMALL = {
    "dtype": "float32",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "max_model_len": 512,
    "kv_cache_memory": 512 * 16 * 2 * 2 * 64 * 4,
    "threads": 1,
    "pooling": "last",
}
"""512 blocks of 16 tokens; 2 layers of K and V with one head of 64 float32."""


class Served(NamedTuple):
    """``engine`` is a ``FakeEngine`` or a ``ProcessClient``."""

    app: Starlette
    client: httpx.AsyncClient
    engine: Any
    context: ServerContext


@cache
def byte_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        _write_byte_model(Path(folder))
        return load_tokenizer(open_checkpoint(resolve(folder)))


def make_context(
    engine: Any,
    tokenizer: Tokenizer,
    config: ServerConfig | None = None,
    reply_format: ReplyFormat | None = None,
    observe: ObserveConfig | None = None,
) -> ServerContext:
    return ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=ChatTemplate(TEMPLATE, bos_token="<|endoftext|>", eos_token="<|im_end|>"),
        served_model_names=("tiny",),
        reply_format=reply_format or PlainFormat(),
        config=config or ServerConfig(),
        observe=observe or ObserveConfig(),
    )


def scripted_engine(**options: Any) -> FakeEngine:
    tokenizer = byte_tokenizer()
    return FakeEngine(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        **{"pooling": "last", **options},
    )


@asynccontextmanager
async def scripted(
    config: ServerConfig | None = None,
    *,
    engine: Any = None,
    reply_format: ReplyFormat | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """An engine that says what it is told (``options`` are ``FakeEngine``'s), behind the whole application."""
    engine = engine or scripted_engine(**options)
    context = make_context(engine, byte_tokenizer(), config, reply_format)
    async with _client(context, headers) as served:
        yield served


@asynccontextmanager
async def real(
    model: Path,
    config: ServerConfig | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """A tiny model in an engine process of its own; ``options`` are ``EngineConfig``'s."""
    tokenizer = load_tokenizer(open_checkpoint(resolve(str(model))))
    wanted = EngineConfig(model=str(model), **{**SMALL, **options})
    engine = ProcessClient(wanted, lambda: tokenizer.eos_token_ids, log_level="warning")
    await engine.start()
    try:
        reply_format = detect_format(None, tokenizer, name="hermes")
        async with _client(make_context(engine, tokenizer, config, reply_format), headers) as served:
            yield served
    finally:
        await engine.close()


@asynccontextmanager
async def _client(context: ServerContext, headers: Mapping[str, str] | None) -> AsyncIterator[Served]:
    app = create_app(context)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers, timeout=PATIENCE
    ) as client:
        yield Served(app, client, context.engine, context)


async def at_baseline(engine: Any) -> EngineStats:
    """The engine's numbers once nothing runs, no block is used and none is leased."""
    async with asyncio.timeout(PATIENCE):
        while True:
            stats: EngineStats = await engine.stats()
            busy = stats.num_running + stats.num_waiting + stats.num_leases
            if not busy and stats.num_free_blocks == stats.num_blocks:
                return stats
            await asyncio.sleep(0.02)
