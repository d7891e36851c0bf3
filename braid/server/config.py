"""What the HTTP shell is told at start, and what it holds on to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from braid.core.errors import InvalidParameterError
from braid.engine.protocol import EngineClient
from braid.text.reply_format import PlainFormat, ReplyFormat
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Limits and times of the HTTP shell.

    Args:
        api_key: every route but ``/health`` asks for it; None leaves the server open.
        max_body_bytes: a longer request body is answered with 413.
        body_timeout: seconds a request body may take to arrive.
        max_json_depth: deepest nesting of a request body.
        max_json_brackets, max_json_colons, max_json_commas: most of these bytes in a body, inside strings or not. They
            bound the containers, keys and values that parsing makes, and with them memory (some 0.3 GB) and the time
            in which nothing else runs (some 0.3 s). Prompts as long as a context of 100,000 tokens have far fewer.
        max_messages, max_tools, max_stop, max_prompts: most entries of these lists in one request.
        max_sequences: most outputs of one request, over all its prompts.
        max_queued: most outputs under way at a time, queued and running.
        offload_bytes: template and tokeniser run in a worker thread for bodies longer than this.
        large_bytes: longer bodies are parsed in a worker thread too, longer text is measured before it is tokenised.
        max_large_prompts: how many bodies longer than ``large_bytes`` are tokenised at once.
        keepalive_seconds: a stream that is silent for so long gets a comment.
        slow_reader_seconds: a reader that takes nothing for so long is dropped.
        drain_timeout: seconds that requests in flight get to finish after SIGTERM.

    Raises:
        InvalidParameterError: naming the field, the value and the valid range.
    """

    api_key: str | None = None
    max_body_bytes: int = 32 * MIB
    body_timeout: float = 60.0
    max_json_depth: int = 64
    max_json_brackets: int = 400_000
    max_json_colons: int = 400_000
    max_json_commas: int = 2_000_000
    max_messages: int = 16_384
    max_tools: int = 256
    max_stop: int = 4
    max_prompts: int = 128
    max_sequences: int = 256
    max_queued: int = 512
    offload_bytes: int = 8192
    large_bytes: int = 256 << 10
    max_large_prompts: int = 2
    keepalive_seconds: float = 15.0
    slow_reader_seconds: float = 30.0
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise InvalidParameterError("api_key must not be empty", param="api_key")
        for name in self.__slots__:
            value = getattr(self, name)
            least = 0 if name == "drain_timeout" else 1e-3
            if name != "api_key" and value < least:
                raise InvalidParameterError(f"{name} must be > 0, got {value!r}", param=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerContext:
    """What every route needs. ``served_model_names`` are the names clients may use; the first is ours in answers."""

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    served_model_names: tuple[str, ...]
    reply_format: ReplyFormat = field(default_factory=PlainFormat)
    config: ServerConfig = field(default_factory=ServerConfig)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.served_model_names:
            raise InvalidParameterError(
                "served_model_names must name at least one model", param="served_model_name"
            )
