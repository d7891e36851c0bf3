"""Text to token ids: off the event loop where it takes long, and not at all where it cannot fit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from braid.core.errors import EngineDeadError, InvalidParameterError
from braid.engine.protocol import EngineInfo
from braid.server.config import ServerContext

Result = TypeVar("Result")
Tokens = tuple[int, ...]


def engine_info(context: ServerContext) -> EngineInfo:
    """Raises EngineDeadError as long as the engine has not been ready once."""
    info = context.engine.info
    if info is None:
        raise EngineDeadError("the engine is still loading its model")
    return info


class PromptEncoder:
    """The tokenizer behind limits. Its ``encode`` may be called from any thread."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._large_turns = asyncio.Semaphore(context.config.max_large_prompts)
        self._lock = threading.Lock()
        self._longest_token: int | None = None

    async def off_loop(self, size: int, work: Callable[[], Result]) -> Result:
        """Run ``work`` for a body of ``size`` bytes: here if it is small, else in a worker thread.

        The tokeniser releases the interpreter; large bodies take turns, so that they leave threads, cores and memory to
        others.
        """
        config = self._context.config
        if size <= config.offload_bytes:
            return work()
        if size <= config.large_bytes:
            return await asyncio.to_thread(work)
        async with self._large_turns:
            return await asyncio.to_thread(work)

    def encode(self, text: str, param: str, *, add_special_tokens: bool) -> Tokens:
        """Token ids of a text that comes from the field ``param``.

        Raises:
            InvalidParameterError: ``context_length_exceeded``, where a large text has more bytes than the context's
                tokens can stand for.
        """
        if len(text) > self._context.config.large_bytes:
            self._check_bytes(len(text.encode()), param)
        return tuple(self._context.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _check_bytes(self, size: int, param: str) -> None:
        least = -(-size // self._longest())
        check_length(least, engine_info(self._context).max_model_len, param, f"at least {least}")

    def _longest(self) -> int:
        """Bytes of the longest token. Found when first needed: a walk over the vocabulary takes some 0.1 s."""
        with self._lock:
            if self._longest_token is None:
                tokenizer = self._context.tokenizer
                sizes = (len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
                self._longest_token = max(sizes, default=1)
            return self._longest_token


def check_length(num_tokens: int, limit: int, param: str, count: str | None = None) -> None:
    """Refuse a prompt that leaves no room for a single token; ``count`` is what to call its length.

    Raises:
        InvalidParameterError: ``context_length_exceeded`` naming both numbers.
    """
    if num_tokens >= limit:
        message = f"the model's context is {limit} tokens, but the prompt has {count or num_tokens} tokens"
        raise InvalidParameterError(message, param=param, code="context_length_exceeded")


def check_context(
    num_tokens: int, max_tokens: int | None, limit: int, param: str, default: int | None
) -> int:
    """Tokens that may be generated: ``max_tokens``; without it ``default``, or what the context leaves.

    Raises:
        InvalidParameterError: ``context_length_exceeded`` naming what was asked and what is allowed.
    """
    if num_tokens == 0:
        raise InvalidParameterError("the prompt has no tokens", param=param)
    check_length(num_tokens, limit, param)
    remaining = limit - num_tokens
    if max_tokens is None:
        return remaining if default is None else min(default, remaining)
    if max_tokens > remaining:
        message = (
            f"the model's context is {limit} tokens, but the prompt has {num_tokens} tokens and max_tokens "
            f"{max_tokens}: {num_tokens + max_tokens} tokens are asked for"
        )
        raise InvalidParameterError(message, param=param, code="context_length_exceeded")
    return max_tokens
