"""What the HTTP shell is told at start, and what it holds on to."""

from __future__ import annotations

import time
from dataclasses import InitVar, dataclass, field

from braid.core.errors import InvalidParameterError
from braid.engine.protocol import EngineClient
from braid.server.guard.keys import ApiKey, check_keys, named_keys
from braid.server.observe.config import ObserveConfig
from braid.text.reply_format import PlainFormat, ReplyFormat
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Limits and times of the HTTP shell.

    Args:
        api_keys: every route but ``/health`` asks for one of them; none leaves the server open.
        api_key: short for one key without a name.
        share_prefix_cache: let different keys use each other's cached prefixes; they can then tell by timing what
            others have asked.
        allowed_hosts: names that the Host header may have, beside this machine's own on loopback; ``*`` is any.
        max_body_bytes: a longer request body is answered with 413.
        body_timeout: seconds a request body may take to arrive.
        max_json_depth: deepest nesting of a request body.
        max_json_brackets, max_json_colons, max_json_commas: most of these bytes in a body, inside strings or not. They
            bound the containers, keys and values that parsing makes, and with them memory (some 0.3 GB) and the time
            in which nothing else runs (some 0.3 s). Prompts as long as a context of 100,000 tokens have far fewer.
        max_messages, max_tools, max_stop, max_prompts: most entries of these lists in one request.
        max_sequences: most outputs of one request, over all its prompts.
        max_queued: most requests, and most outputs, under way at a time, queued and running.
        max_pending_bytes: most bytes of request bodies under way; a body of unknown length counts as the longest.
        max_queued_kv: most prompt tokens under way, in multiples of what the engine's KV blocks hold.
        key_share: the part of these bounds that one API key of several may take.
        max_connections: more connections are turned away.
        header_timeout: seconds that the head of a request may take to arrive.
        max_header_bytes: longest head of a request.
        idle_timeout: a connection that asks for nothing for so long is closed.
        max_ttl: longest time, in seconds, that a client's wish to keep a prefix holds.
        max_programs: how many programs are remembered.
        program_idle_seconds: a program that sends nothing for so long is forgotten.
        offload_bytes: template and tokeniser run in a worker thread for bodies longer than this.
        large_bytes: longer bodies are parsed in a worker thread too, longer text is measured before it is tokenised.
        max_large_prompts: how many bodies longer than ``large_bytes`` are tokenised at once.
        keepalive_seconds: a stream that is silent for so long gets a comment.
        slow_reader_seconds: a reader that takes nothing for so long is dropped.
        drain_timeout: seconds that requests in flight get to finish after SIGTERM.
        strip_volatile_line: leave a client's billing line, which changes on every request, out of system texts.

    Raises:
        InvalidParameterError: naming the field, the value and the valid range.
    """

    api_keys: tuple[ApiKey, ...] = ()
    api_key: InitVar[str | None] = None
    share_prefix_cache: bool = False
    allowed_hosts: tuple[str, ...] = ()
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
    max_pending_bytes: int = 256 * MIB
    max_queued_kv: float = 8.0
    key_share: float = 0.25
    max_connections: int = 4096
    header_timeout: float = 30.0
    max_header_bytes: int = 64 << 10
    idle_timeout: float = 75.0
    max_ttl: float = 3600.0
    max_programs: int = 4096
    program_idle_seconds: float = 3600.0
    offload_bytes: int = 8192
    large_bytes: int = 256 << 10
    max_large_prompts: int = 2
    keepalive_seconds: float = 15.0
    slow_reader_seconds: float = 30.0
    drain_timeout: float = 30.0
    strip_volatile_line: bool = True

    def __post_init__(self, api_key: str | None) -> None:
        if api_key is not None:
            object.__setattr__(self, "api_keys", (*self.api_keys, *named_keys((api_key,))))
        check_keys(self.api_keys)
        for name in self.__slots__:
            value = getattr(self, name)
            least = 0 if name == "drain_timeout" else 1e-3
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least:
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
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.served_model_names:
            raise InvalidParameterError(
                "served_model_names must name at least one model", param="served_model_name"
            )
