"""A scripted engine, a byte-level tokenizer, and an application around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.constraint import Constraint
from braid.core.errors import BraidError, EngineDeadError
from braid.core.program import Applied, Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta, FinishReason, TokenLogprobs
from braid.engine.protocol import MAX_LISTED, EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish
from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.programs.intent import ACTED_ON
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart, ReplyReader
from braid.text.reply_format import PlainFormat
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer, load_tokenizer
from braid.text.tools import Tool, ToolChoice

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}[{{ tools | length }} tools]{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ("tiny", "alias")
CONTEXT = 1024
VOCAB = 259


@dataclass
class FakeEngine:
    """Answers every prompt with ``reply``, byte by byte, ``burst`` tokens at a time.

    ``reply`` is a text, or a function from the prompt's text to one. ``hold_after`` tokens the stream waits for
    ``go``. ``error`` is raised before the first delta, or after ``fail_after`` tokens. ``delta_error`` makes the
    engine report the failure of one request. ``pooling`` makes it a model that embeds: ``embed`` gives the vector of
    a prompt's token ids. Programs are asked for through ``verbs``, and answered with ``outcome``; how their turns
    ended goes to ``endings``, and ``listed`` are those it tells of. It acts on the wishes ``acts_on``.
    """

    reply: str | Callable[[str], str] = "Hello, wörld! 😀"
    burst: int = 1
    hold_after: int | None = None
    fail_after: int | None = None
    error: BraidError | Exception | None = None
    delta_error: str | None = None
    ready: bool = True
    loading: bool = False
    cached: int = 3
    go: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[GenerateRequest] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    encode: Callable[[str], list[int]] = lambda text: list(text.encode())
    decode: Callable[[list[int]], str] = lambda ids: bytes(ids).decode()
    pooling: str | None = None
    embed: Callable[[tuple[int, ...]], tuple[float, ...]] = lambda ids: (3.0, 4.0, 0.0, float(len(ids)))
    verbs: list[tuple[ProgramVerb, ProgramRef, float | None]] = field(default_factory=list)
    outcome: Applied = Applied.APPLIED
    endings: list[tuple[ProgramRef, Finish, str | None]] = field(default_factory=list)
    listed: list[ProgramInfo] = field(default_factory=list)
    acts_on: tuple[str, ...] = tuple(sorted(ACTED_ON))

    def text_for(self, prompt: tuple[int, ...]) -> str:
        """What the engine answers a prompt with."""
        return self.reply if isinstance(self.reply, str) else self.reply(self.decode(list(prompt)))

    @property
    def info(self) -> EngineInfo | None:
        if self.loading:
            return None
        return EngineInfo(
            model="tiny-llama",
            architecture="LlamaForCausalLM",
            dtype="float32",
            device="cpu",
            max_model_len=CONTEXT,
            max_num_seqs=4,
            max_num_batched_tokens=64,
            vocab_size=VOCAB,
            num_blocks=10,
            block_size=16,
            kernels="reference",
            torch_version="2",
            hidden_size=len(self.embed((0,))),
            pooling=self.pooling,
            agent_policy="braid",
            acts_on=self.acts_on,
        )

    @property
    def is_ready(self) -> bool:
        return self.ready

    @property
    def down_reason(self) -> str:
        return "" if self.ready else "the engine is not running"

    @property
    def restarts(self) -> int:
        return 0

    async def stats(self) -> EngineStats:
        if not self.ready:
            raise EngineDeadError("the engine is down")
        return EngineStats(num_running=2, num_blocks=10, num_free_blocks=4, prefix_queries=7, prefix_hits=5)

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        if not self.ready:
            raise EngineDeadError("the engine is down")
        self.verbs.append((verb, program, seconds))
        return Outcome(verb.value, self.outcome)

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        self.endings.append((program, finish, tool))

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        if not self.ready:
            raise EngineDeadError("the engine is down")
        return [info for info in self.listed if owner in (None, info.owner)][:limit]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.seen.append(request)
        self.active.add(request.request_id)
        finished = False
        try:
            if self.error is not None and self.fail_after is None:
                raise self.error
            async for delta in self._deltas(request):
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self.active.discard(request.request_id)
            if not finished:
                self.aborted.append(request.request_id)

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if request.pooling is not None:
            vector = self.embed(request.prompt_token_ids)
            if self.hold_after is not None:
                await self.go.wait()
            yield Delta(request.request_id, (), None, 0, FinishReason.STOP, embedding=vector)
            return
        tokens = self.encode(self.text_for(request.prompt_token_ids))
        limit = request.params.max_tokens or CONTEXT
        reason = FinishReason.STOP if len(tokens) <= limit else FinishReason.LENGTH
        tokens = tokens[:limit]
        for start in range(0, len(tokens), self.burst):
            if self.hold_after is not None and start >= self.hold_after:
                await self.go.wait()
            if self.fail_after is not None and start >= self.fail_after and self.error is not None:
                raise self.error
            piece = tuple(tokens[start : start + self.burst])
            last = start + self.burst >= len(tokens)
            if last and self.delta_error is not None:
                yield Delta(request.request_id, (), None, 0, FinishReason.ERROR, None, self.delta_error)
                return
            yield Delta(
                request.request_id,
                piece,
                self._logprobs(request, piece),
                self.cached,
                reason if last else None,
                prompt_logprobs=self._prompt_logprobs(request) if start == 0 else None,
            )
            await asyncio.sleep(0)

    def _logprobs(self, request: GenerateRequest, piece: tuple[int, ...]) -> tuple[TokenLogprobs, ...] | None:
        count = request.params.logprobs
        if count is None:
            return None
        return tuple(
            TokenLogprobs(token, -0.5, 1, tuple((other, -1.0 - other) for other in range(count)))
            for token in piece
        )

    def _prompt_logprobs(self, request: GenerateRequest) -> tuple[TokenLogprobs | None, ...] | None:
        """The further a token stands, the less likely it was; its alternatives are the first token ids."""
        count = request.params.prompt_logprobs
        if count is None:
            return None
        top = tuple((other, -1.0 - other) for other in range(count))
        later = enumerate(request.prompt_token_ids[1:], 1)
        return (None, *(TokenLogprobs(token, -0.01 * at, 1, top) for at, token in later))


_ENDS = {"content": ("<think>", "<call>"), "think": ("</think>",), "name": ("\n",), "call": ("</call>",)}
_AFTER = {"<think>": "think", "</think>": "content", "<call>": "name", "\n": "call", "</call>": "content"}


class TinyReader:
    """Reads ``<think>..</think>`` and ``<call>name``, a line break, ``{..}</call>``; everything else is content."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._state = "content"
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        return self._state == "think"

    def feed(self, text: str) -> list[ReplyPart]:
        self._held += text
        parts: list[ReplyPart] = []
        while (found := min(((self._held.find(end), end) for end in self._open()), default=None)) is not None:
            at, end = found
            text, self._held = self._held[:at], self._held[at + len(end) :]
            parts += self._told(text)
            if end == "</call>":
                parts.append(CallEnd(self.num_calls - 1))
            self._state = _AFTER[end]
        if self._state != "name":
            keep = self._undecided()
            text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            parts += self._told(text)
        return parts

    def finish(self) -> list[ReplyPart]:
        text, self._held = self._held, ""
        return [Content(f"<call>{text}")] if self._state == "name" else self._told(text)

    def _open(self) -> list[str]:
        return [end for end in _ENDS[self._state] if end in self._held]

    def _undecided(self) -> int:
        """Characters at the end that may begin a mark."""
        sizes = range(min(8, len(self._held)), 0, -1)
        ends = _ENDS[self._state]
        return next((size for size in sizes if any(end.startswith(self._held[-size:]) for end in ends)), 0)

    def _told(self, text: str) -> list[ReplyPart]:
        if self._state == "name":
            self.num_calls += 1
            return [CallStart(self.num_calls - 1, f"call_{self.num_calls}", text)]
        if not text:
            return []
        if self._state == "call":
            return [CallArguments(self.num_calls - 1, text)]
        return [Reasoning(text) if self._state == "think" else Content(text)]


class TinyFormat(PlainFormat):
    """What a scripted model writes; its constraint tells what it was asked for."""

    name = "tiny"

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> ReplyReader:
        return TinyReader()

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        self.asked.append({"tools": tools, "choice": choice, "parallel": parallel, "answer": answer})
        return answer


@pytest.fixture
def reply_format() -> PlainFormat:
    """Override it with ``TinyFormat()`` for reasoning and tool calls."""
    return PlainFormat()


@pytest.fixture
def tiny_format() -> TinyFormat:
    return TinyFormat()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte-tokenizer")
    _write_byte_model(folder)
    return load_tokenizer(open_checkpoint(resolve(str(folder))))


def _write_byte_model(folder: Path) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps(model))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


@pytest.fixture
def engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig()


@pytest.fixture
def context(
    engine: FakeEngine, tokenizer: Tokenizer, config: ServerConfig, reply_format: PlainFormat
) -> ServerContext:
    template = ChatTemplate(TEMPLATE, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    return ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template,
        served_model_names=NAMES,
        reply_format=reply_format,
        config=config,
    )


@pytest.fixture
def app(context: ServerContext) -> Starlette:
    return create_app(context)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


class LoopbackServer(uvicorn.Server):
    """uvicorn inside the test's event loop: no signal handlers, and none of its sleeps of a tenth of a second."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:
                    await asyncio.sleep(0.005)
                for server in self.servers:
                    await server.wait_closed()
        for task in self.server_state.tasks:
            task.cancel()


@pytest.fixture
async def url(app: Starlette) -> AsyncIterator[str]:
    """The application on a real socket."""
    options = {"ws": "none", "lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 1}
    server = LoopbackServer(uvicorn.Config(app, port=0, **options))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


def parse_events(text: str) -> list[dict[str, object] | str]:
    """The payloads of an event stream; ``[DONE]`` stays a string, comments are left out."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@pytest.fixture
def events() -> Callable[[str], list[dict[str, object] | str]]:
    return parse_events
