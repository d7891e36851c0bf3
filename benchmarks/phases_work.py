"""Workloads of ``phases.py``, and what plays them against an engine of this process, with the moment of every token.

A client is a generator: it yields when and what it asks, and is given the tokens of the answer.
"""

from __future__ import annotations

import csv
import heapq
import math
import queue
import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common import random_prompt

from braid import LLM, SamplingParams
from braid.core.request import Delta
from braid.engine.protocol import GenerateRequest

STREAM = "stream"
"""The kind of requests that decode until the end of the run and then are cut off."""
ENDLESS = 3000
"""Tokens that such a request may have."""
SETTLE_S = 1.5
"""Until streams are under way and long prompts begin to come."""
PEAK_S = 5.0
_numbers = count()


class Ask(NamedTuple):
    """One request, ``delay_s`` after the run's start or after the answer before."""

    delay_s: float
    prompt: Sequence[int]
    max_tokens: int
    kind: str


Client = Generator[Ask, list[int], None]


@dataclass(slots=True)
class Asked:
    """What became of a request. Seconds from the start of the run."""

    kind: str
    sent: float
    num_prompt: int
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    num_cached: int = 0
    is_over: bool = False

    @property
    def ttft(self) -> float | None:
        return self.times[0] - self.sent if self.times else None

    @property
    def tbts(self) -> list[tuple[float, float]]:
        """When each token but the first came, and how long after the one before."""
        return [(after, after - before) for before, after in pairwise(self.times)]


class Course(NamedTuple):
    """A run: what was asked, and the seconds that count."""

    asked: list[Asked]
    begin: float
    end: float


def play(llm: LLM, clients: Sequence[Client], begin_s: float = 0.0) -> Course:
    """Let all clients ask until none but endless streams is left; these are cut off then.

    Raises:
        RuntimeError: a request failed.
    """
    return _Play(llm, clients).run(begin_s)


class _Play:
    def __init__(self, llm: LLM, clients: Sequence[Client]) -> None:
        self._core = llm._core  # text and queues on the way out are not what is measured
        self._inbox: queue.SimpleQueue[tuple[str, float, Any]] = queue.SimpleQueue()
        self._due: list[tuple[float, int, Client, Ask]] = []
        self._open: dict[str, tuple[Client, Asked]] = {}
        self._asked: list[Asked] = []
        self._begun = time.perf_counter()
        for client in clients:
            self._plan(client, next(client))

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    def _plan(self, client: Client, ask: Ask) -> None:
        heapq.heappush(self._due, (self._now() + ask.delay_s, next(_numbers), client, ask))

    def run(self, begin_s: float) -> Course:
        while self._due or any(asked.kind != STREAM for _, asked in self._open.values()):
            while self._due and self._due[0][0] <= self._now():
                _, _, client, ask = heapq.heappop(self._due)
                self._ask(client, ask)
            until = max(0.0, self._due[0][0] - self._now()) if self._due else None
            try:
                self._take(*self._inbox.get(timeout=until))
            except queue.Empty:
                continue
        end = self._now()
        for name in self._open:
            self._core.abort(name)
        while self._core.stats().result().num_running != 0:
            time.sleep(0.01)
        return Course(self._asked, begin_s, end)

    def _ask(self, client: Client, ask: Ask) -> None:
        name, begun, inbox = f"phases-{next(_numbers)}", self._begun, self._inbox
        params = SamplingParams(temperature=0.0, max_tokens=ask.max_tokens, ignore_eos=True)
        asked = Asked(ask.kind, self._now(), len(ask.prompt))
        self._asked.append(asked)
        self._open[name] = client, asked

        def put(item: Any) -> None:
            inbox.put((name, time.perf_counter() - begun, item))

        self._core.submit(GenerateRequest(name, tuple(ask.prompt), params), put, put)

    def _take(self, name: str, at: float, item: Any) -> None:
        if not isinstance(item, Delta) or item.error is not None:
            raise RuntimeError(f"a request failed: {getattr(item, 'error', None) or item}")
        client, asked = self._open[name]
        asked.tokens += item.token_ids
        asked.times += [at] * len(item.token_ids)
        asked.num_cached = item.num_cached_tokens
        if item.finish_reason is None:
            return
        del self._open[name]
        asked.is_over = True
        with suppress(StopIteration):
            self._plan(client, client.send(asked.tokens))


class Workload(NamedTuple):
    """``clients`` makes new ones for every run; what comes before ``begin_s`` does not count."""

    name: str
    clients: Callable[[int], list[Client]]
    begin_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything, and how long."""

    streams: int = 6
    long_prompts: int = 4
    long_tokens: int = 1200
    burst_s: float = 40.0
    load_tok_s: float = 220.0
    """Prompt tokens per second in the mean of the bursty stretch."""
    context: float = 0.25
    programs: int = 6
    turns: int = 4
    first_tokens: int = 400
    later_tokens: int = 120
    out_tokens: int = 24
    light: int = 10
    light_gap_s: float = 5.0
    light_tokens: int = 300


QUICK = Size(
    streams=4,
    long_prompts=2,
    long_tokens=400,
    burst_s=6.0,
    programs=3,
    turns=2,
    first_tokens=150,
    later_tokens=60,
    out_tokens=12,
    light=3,
    light_gap_s=1.5,
    light_tokens=100,
)
LARGE_MODEL = Size(
    long_prompts=4,
    long_tokens=800,
    load_tok_s=90.0,
    first_tokens=200,
    later_tokens=60,
    light_gap_s=10.0,
    light_tokens=150,
)


def workloads(size: Size, vocab_size: int, trace: Path | None, seed: int) -> list[Workload]:
    """Long prompts among streams; a burst; agents' programs; and a light load."""
    rows = _synthetic(size, seed) if trace is None else busy(read_azure(trace, size.context), size)
    return [
        Workload("long prompts", lambda run: _long_prompts(size, vocab_size, _first(seed, run, 0)), SETTLE_S),
        Workload("burst", lambda run: _burst(rows, vocab_size, _first(seed, run, 1)), 0.0),
        Workload("agents", lambda run: _agents(size, vocab_size, seed, _first(seed, run, 2)), 0.0),
        Workload("light", lambda run: _burst(_light(size, seed), vocab_size, _first(seed, run, 3)), 0.0),
    ]


def _first(seed: int, run: int, number: int) -> int:
    """Of the seeds of a workload's prompts in a run: no two have one in common, as long as it has 100,000 prompts."""
    return 100_000 * (number + 4 * run) + 1_000_000_000 * seed


def _long_prompts(size: Size, vocab_size: int, first: int) -> list[Client]:
    """Streams that decode all the time, and one client that sends long prompts back to back."""

    def stream(number: int) -> Client:
        yield Ask(0.0, random_prompt(64, vocab_size, first + number), ENDLESS, STREAM)

    def long() -> Client:
        for number in range(size.long_prompts):
            prompt = random_prompt(size.long_tokens, vocab_size, first + 1000 + number)
            yield Ask(0.0 if number else SETTLE_S, prompt, 1, "long")

    return [*(stream(number) for number in range(size.streams)), long()]


class Row(NamedTuple):
    at_s: float
    num_prompt: int
    num_out: int


def _burst(rows: Sequence[Row], vocab_size: int, first: int) -> list[Client]:
    """Requests at their times, whatever became of earlier ones."""

    def one(number: int, row: Row) -> Client:
        yield Ask(row.at_s, random_prompt(row.num_prompt, vocab_size, first + number), row.num_out, "one")

    return [one(number, row) for number, row in enumerate(rows)]


def read_azure(path: Path, context: float) -> list[Row]:
    """Microsoft's trace of 2023, prompts scaled by ``context`` and capped, answers capped."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [
        Row(
            at - times[0],
            _between(8, round(context * int(row["ContextTokens"])), 1500),
            int(row["GeneratedTokens"]),
        )
        for at, row in zip(times, rows, strict=True)
    ]


def busy(rows: Sequence[Row], size: Size) -> list[Row]:
    """The stretch of about the wanted load whose busiest seconds are the busiest, from time 0."""
    wanted, last = size.load_tok_s * size.burst_s, rows[-1].at_s
    best: tuple[float, list[Row]] = (-1.0, [])
    nearest: tuple[float, list[Row]] = (math.inf, [])
    for begin in range(0, int(last - size.burst_s), 2):
        part = [row for row in rows if begin <= row.at_s < begin + size.burst_s]
        total = sum(row.num_prompt for row in part)
        nearest = min(nearest, (abs(total - wanted), part), key=lambda pair: pair[0])
        if 0.9 * wanted <= total <= 1.1 * wanted:
            best = max(best, (_peak(part), part), key=lambda pair: pair[0])
    chosen = best[1] or nearest[1]
    return [Row(row.at_s - chosen[0].at_s, row.num_prompt, _between(4, row.num_out, 48)) for row in chosen]


def _peak(rows: Sequence[Row]) -> float:
    """Prompt tokens of the busiest seconds."""
    return max(
        (sum(other.num_prompt for other in rows if 0 <= other.at_s - row.at_s < PEAK_S) for row in rows),
        default=0.0,
    )


def _synthetic(size: Size, seed: int) -> list[Row]:
    """Without a trace: half of the tokens evenly spread, half within a tenth of the time after the first third."""
    rng = random.Random(seed)
    tokens = max(64, round(size.load_tok_s * size.burst_s / 24))
    steady = [rng.uniform(0, size.burst_s) for _ in range(12)]
    burst = [size.burst_s * rng.uniform(0.33, 0.43) for _ in range(12)]
    return [
        Row(at, max(8, round(rng.gauss(tokens, tokens / 4))), rng.randint(8, 32))
        for at in sorted(steady + burst)
    ]


def _light(size: Size, seed: int) -> list[Row]:
    """Arrivals at random, so far apart that they seldom meet; the same for all runs."""
    rng = random.Random(seed)
    at, rows = 0.0, []
    for _ in range(size.light):
        rows.append(
            Row(at, max(8, round(rng.gauss(size.light_tokens, size.light_tokens / 4))), size.out_tokens)
        )
        at += rng.expovariate(1 / size.light_gap_s)
    return rows


def _agents(size: Size, vocab_size: int, shape: int, first: int) -> list[Client]:
    """Programs that resend their history each turn; ``shape`` fixes their times and lengths for all runs."""
    rng = random.Random(shape)
    starts = [0.0]
    while len(starts) < size.programs:
        starts.append(starts[-1] + rng.expovariate(0.5))

    def program(number: int, start: float, gaps: Sequence[float]) -> Client:
        history = random_prompt(size.first_tokens, vocab_size, first + 1000 * number)
        for turn, gap in enumerate((start, *gaps)):
            answer = yield Ask(gap, history, size.out_tokens, "turn")
            more = random_prompt(size.later_tokens, vocab_size, first + 1000 * number + turn + 1)
            history = [*history, *answer, *more]

    return [
        program(number, start, [rng.lognormvariate(math.log(0.7), 1.0) for _ in range(size.turns - 1)])
        for number, start in enumerate(starts)
    ]


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
