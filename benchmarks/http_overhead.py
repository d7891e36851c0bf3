"""What the HTTP shell costs: Braid's application around an engine that computes nothing, beside a bare Starlette app
that sends the same bytes.

Each application runs in a process of its own on uvicorn, as ``braid serve`` runs it (log lines included); the client is
another process with bare sockets. One short chat turn is sent. Rounds are interleaved.

    whole        not streamed; 16 tokens, there at once
    lockstep     streamed; every turn of the event loop gives each sequence one token, so each is a write of its own
    running      streamed; every millisecond gives each sequence one token, whether the shell has kept up or not, as an
                 engine in another process does; tokens that are late go out together

    max          requests (streams: tokens) per second with all connections always busy
    added p99    at half of Braid's maximum (or of the goal, if that is less), Poisson arrivals: the 99th percentile of
                 the time from when a request was due to its whole answer (streams: to its first token), less the same
                 of the bare application

Run: python benchmarks/http_overhead.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop
from common import describe, machine, save, show
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.cli.serve import _log_to, chat_template
from braid.core.config import DEFAULT_MODEL
from braid.core.metrics import percentile
from braid.core.program import Applied, Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta, FinishReason
from braid.engine.inbox import Inbox
from braid.engine.protocol import MAX_LISTED, EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish
from braid.server.config import ServerConfig, ServerContext
from braid.server.serve import run
from braid.text.tokenizer import load_tokenizer

PATH = "/v1/chat/completions"
APPS = ("braid", "starlette")
TOKENS = {"whole": 16, "lockstep": 64, "running": 128}
"""Output tokens of each kind of request; they tell the servers which kind it is."""
GOALS = {"whole": 1_500, "lockstep": 15_000, "running": 15_000}
"""What is aimed at, in requests and tokens per second; latency is measured at half of it, or of what there is."""
STEP_SECONDS = 0.001
CONTEXT = 8192
QUESTION = (
    "Which rivers run through the three largest cities of the country? Answer in one short sentence, please."
)
TEXT = " The river runs from the mountains to the sea and passes the old city on its way"


class NullEngine:
    """Answers with the same tokens always. Two clocks give tokens to streams: the event loop's turns, and time."""

    is_ready = True
    down_reason = ""
    restarts = 0

    def __init__(self, token_ids: list[int], vocab_size: int) -> None:
        self._tokens = [token_ids[index % len(token_ids)] for index in range(max(TOKENS.values()))]
        self._streams: dict[str, dict[str, tuple[Inbox, int]]] = {"lockstep": {}, "running": {}}
        self._steppers: dict[str, asyncio.Task[None]] = {}
        self.info = EngineInfo(
            model="null",
            architecture="none",
            dtype="none",
            device="none",
            max_model_len=CONTEXT,
            max_num_seqs=512,
            max_num_batched_tokens=CONTEXT,
            vocab_size=vocab_size,
            num_blocks=4096,
            block_size=16,
            kernels="none",
            torch_version="none",
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        limit = request.params.max_tokens or 1
        kind = next(kind for kind, tokens in TOKENS.items() if tokens == limit)
        if kind == "whole":
            yield Delta(request.request_id, tuple(self._tokens[:limit]), None, 0, FinishReason.LENGTH)
            return
        inbox = Inbox()
        self._streams[kind][request.request_id] = (inbox, 0)
        if kind not in self._steppers:
            self._steppers[kind] = asyncio.create_task(self._run(kind))
        try:
            while True:
                delta = await inbox.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._streams[kind].pop(request.request_id, None)

    async def _run(self, kind: str) -> None:
        done, begin = 0, time.perf_counter()
        while self._streams[kind]:
            if kind == "lockstep":
                self._step(kind)
                await asyncio.sleep(0)
                continue
            while done < (time.perf_counter() - begin) / STEP_SECONDS:
                self._step(kind)
                done += 1
            await asyncio.sleep(STEP_SECONDS)
        del self._steppers[kind]

    def _step(self, kind: str) -> None:
        streams = self._streams[kind]
        for request_id, (inbox, at) in tuple(streams.items()):
            last = at + 1 == TOKENS[kind]
            inbox.put(Delta(request_id, (self._tokens[at],), None, 0, FinishReason.LENGTH if last else None))
            if last:
                del streams[request_id]
            else:
                streams[request_id] = (inbox, at + 1)

    async def stats(self) -> EngineStats:
        return EngineStats(num_running=sum(map(len, self._streams.values())))

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        return Outcome(verb.value, Applied.IGNORED, "unsupported")

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        pass

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        return []


def braid_context() -> ServerContext:
    tokenizer = load_tokenizer(open_checkpoint(resolve(DEFAULT_MODEL, offline=True)))
    engine = NullEngine(tokenizer.encode(TEXT, add_special_tokens=False), tokenizer.vocab_size)
    return ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template(tokenizer, None),
        served_model_names=("null",),
        config=ServerConfig(),
    )


def bare_app(folder: Path) -> Any:
    """Sends what Braid sent, a chunk per token by the same two clocks."""
    whole = (folder / "whole").read_bytes()
    chunks = {
        kind: [part + b"\n\n" for part in (folder / kind).read_bytes().split(b"\n\n") if part]
        for kind in TOKENS
        if kind != "whole"
    }

    async def lockstep() -> AsyncIterator[bytes]:
        for chunk in chunks["lockstep"]:
            yield chunk
            await asyncio.sleep(0)

    async def running() -> AsyncIterator[bytes]:
        begin, sent = time.perf_counter(), 0
        while sent < len(chunks["running"]):
            await asyncio.sleep(STEP_SECONDS)
            due = int((time.perf_counter() - begin) / STEP_SECONDS)
            yield b"".join(chunks["running"][sent:due])
            sent = max(sent, due)

    async def answer(request: Request) -> Response:
        wanted = msgspec.json.decode(await request.body())
        if not wanted["stream"]:
            return Response(whole, media_type="application/json")
        stream = lockstep() if wanted["max_tokens"] == TOKENS["lockstep"] else running()
        return StreamingResponse(stream, media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def serve(name: str, port: int, folder: Path) -> None:
    _log_to("info")
    if name == "braid":
        run(braid_context(), port=port)
        return
    config = uvicorn.Config(
        bare_app(folder),
        port=port,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time. Finds the ends of answers, and no more."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._streamed = False
        self._done: asyncio.Future[bytes] | None = None
        self.first = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes, *, streamed: bool) -> asyncio.Future[bytes]:
        self._data = bytearray()
        self._streamed = streamed
        self.first = 0.0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
        self._data += data
        if self._done is not None and not self._done.done() and self._is_whole():
            self._done.set_result(bytes(self._data))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("closed early"))

    def _is_whole(self) -> bool:
        if self._streamed:
            return self._data.endswith(b"\r\n0\r\n\r\n")
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return False
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return len(body) == int(length)


def request_bytes(kind: str) -> bytes:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION},
    ]
    fields = {"messages": messages, "max_tokens": TOKENS[kind], "temperature": 0.7}
    body = msgspec.json.encode({**fields, "stream": kind != "whole"})
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def body_of(answer: bytes, kind: str) -> bytes:
    """The body of an answer; chunks joined."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    if kind == "whole":
        return rest
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def busy(port: int, kind: str, connections: int, seconds: float) -> float:
    """Requests per second, or tokens per second, with every connection always busy."""
    request, streamed = request_bytes(kind), kind != "whole"
    clients = [await connect(port) for _ in range(connections)]
    begin = time.perf_counter()
    done = 0

    async def one(client: Connection) -> None:
        nonlocal done
        while time.perf_counter() - begin < seconds:
            await client.ask(request, streamed=streamed)
            done += TOKENS[kind] if streamed else 1

    await asyncio.gather(*(one(client) for client in clients))
    elapsed = time.perf_counter() - begin
    for client in clients:
        client._transport.close()
    return done / elapsed


async def paced(port: int, kind: str, rate: float, seconds: float, seed: int) -> float:
    """99th percentile, in seconds, of answers to ``rate`` requests per second."""
    request, streamed = request_bytes(kind), kind != "whole"
    idle = [await connect(port) for _ in range(32)]
    gaps = random.Random(seed)
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def one(due: float) -> None:
        client = idle.pop() if idle else await connect(port)
        await client.ask(request, streamed=streamed)
        times.append((client.first if streamed else time.perf_counter()) - due)
        idle.append(client)

    begin = due = time.perf_counter()
    tasks = []
    while due - begin < seconds:
        due += gaps.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(loop.create_task(one(due)))
    await asyncio.gather(*tasks)
    for client in idle:
        client._transport.close()
    return percentile(times, 99)


def start(name: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, "--serve", name, "--port", str(port), "--folder", str(folder)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


async def ready(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                client = await connect(port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            client._transport.close()
            return


async def sample(port: int, folder: Path) -> None:
    """Keep one answer of each kind for the bare application."""
    client = await connect(port)
    for kind in TOKENS:
        answer = await client.ask(request_bytes(kind), streamed=kind != "whole")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        (folder / kind).write_bytes(body_of(answer, kind))


async def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    ports = {name: options.port + index for index, name in enumerate(APPS)}
    processes = []
    try:
        processes.append(start("braid", ports["braid"], folder))
        await ready(ports["braid"])
        await sample(ports["braid"], folder)
        processes.append(start("starlette", ports["starlette"], folder))
        await ready(ports["starlette"])
        return [await measure_kind(kind, ports, options) for kind in TOKENS]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


async def measure_kind(kind: str, ports: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in APPS}
    for port in ports.values():
        await busy(port, kind, options.connections, 0.5)
    for _ in range(options.rounds):
        for name, port in ports.items():
            rates[name].append(await busy(port, kind, options.connections, options.seconds))
    best = {name: statistics.median(values) for name, values in rates.items()}
    half = min(best["braid"], GOALS[kind]) / 2 / (TOKENS[kind] if kind != "whole" else 1)
    late: dict[str, list[float]] = {name: [] for name in APPS}
    for seed in range(options.rounds):
        for name, port in ports.items():
            late[name].append(await paced(port, kind, half, options.seconds, seed))
    p99 = {name: statistics.median(values) * 1000 for name, values in late.items()}
    return {
        "kind": kind,
        "unit": "tok/s" if kind != "whole" else "req/s",
        "braid max": best["braid"],
        "starlette max": best["starlette"],
        "ratio": statistics.median(b / s for b, s in zip(rates["braid"], rates["starlette"], strict=True)),
        "at req/s": half,
        "braid p99 ms": p99["braid"],
        "starlette p99 ms": p99["starlette"],
        "added p99 ms": p99["braid"] - p99["starlette"],
        "rounds": {"max": rates, "p99_s": late},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--port", type=int, default=18_600)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=APPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.port, options.folder)
        return
    about = machine()
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        rows = runner.run(measure(options, Path(folder)))
    print(describe(about))
    show(f"HTTP, {options.connections} connections, median of {options.rounds} rounds", rows)
    save(options.json, {"machine": about, "options": {"seconds": options.seconds}, "rows": rows})


if __name__ == "__main__":
    main()
