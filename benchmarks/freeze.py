"""Does one long prompt freeze everybody's tokens? Any OpenAI-compatible server, and Braid in each of its modes.

Four streams decode (prompts of 64 words, end-of-sequence ignored); then a prompt of 4,000 common words arrives, three
times. Looked at are the times between two tokens (TBT) of the running streams while its first token is awaited: every
gap that overlaps this window, however long before it began. Beside them: tokens per second of all streams inside and
outside of the windows, and the long prompt's time to the first token (TTFT).

``python benchmarks/freeze.py [MODEL] [--modes mixed,prefill-first,auto] [--json OUT] [--figure PNG]`` starts Braid once
per mode; options that are not known here go to the server. ``--url http://127.0.0.1:8080/v1 --label llama-server`` asks
a server that is there. ``freeze_figure.py`` draws several results as one picture.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common import describe, machine, save, serving, show
from peers.client import prompt

from braid.core.metrics import percentile

QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
MAX_TOKENS = 4000
"""Of a stream; one that comes to its end begins anew."""
TIMEOUT_S = 900


class Window(NamedTuple):
    """From the moment a long prompt was sent until its first token. Seconds from the start of the run."""

    begin: float
    end: float


class Server(NamedTuple):
    url: str
    model: str
    extra: dict[str, Any]

    def tokens(self, text: str, max_tokens: int) -> Iterator[None]:
        """One for each event of a streamed completion that has a choice, when it arrives.

        Raises:
            RuntimeError: the server refuses.
        """
        url = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_S)
        body = {
            "model": self.model,
            "prompt": text,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            **self.extra,
        }
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", f"{url.path}/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    yield
        finally:
            connection.close()


class Runs:
    """Streams that decode until they are stopped; per stream the times of its completions' tokens."""

    def __init__(self, server: Server, num_streams: int, words: int) -> None:
        self._server, self._words = server, words
        self._begun = time.perf_counter()
        self._is_over = threading.Event()
        self._errors: list[BaseException] = []
        self.streams: list[list[list[float]]] = [[] for _ in range(num_streams)]
        self._threads = [
            threading.Thread(target=self._stream, args=(number,), daemon=True)
            for number in range(num_streams)
        ]
        for thread in self._threads:
            thread.start()

    def now(self) -> float:
        return time.perf_counter() - self._begun

    def wait_for_tokens(self, count: int) -> None:
        """Until every stream has so many."""
        while any(sum(map(len, stream)) < count for stream in self.streams):
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        if self._errors:
            raise SystemExit(f"a stream broke: {self._errors[0]}")

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self.check()

    def _stream(self, number: int) -> None:
        try:
            while not self._is_over.is_set():
                times: list[float] = []
                self.streams[number].append(times)
                text = prompt(self._words, seed=1000 * len(self.streams[number]) + number)
                for _ in self._server.tokens(text, MAX_TOKENS):
                    times.append(self.now())
                    if self._is_over.is_set():
                        break
        except Exception as error:
            self._errors.append(error)


def freeze(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """The whole course on one server: its numbers, and every token's time."""
    for _ in server.tokens(prompt(options.stream_words, seed=1), 8):  # warm up
        pass
    runs = Runs(server, options.streams, options.stream_words)
    runs.wait_for_tokens(8)
    windows = []
    for number in range(options.times):
        time.sleep(options.rest)
        begin = runs.now()
        for _ in server.tokens(prompt(options.words, seed=7 + number), 1):
            windows.append(Window(begin, runs.now()))
            break
        runs.check()
    time.sleep(options.rest)
    end = runs.now()
    runs.stop()
    return {
        **numbers_of(runs.streams, windows, end),
        "windows": [[round(value, 4) for value in window] for window in windows],
        "streams": [[[round(at, 4) for at in times] for times in stream] for stream in runs.streams],
    }


def numbers_of(
    streams: Sequence[Sequence[Sequence[float]]], windows: Sequence[Window], end: float
) -> dict[str, Any]:
    """What is looked at; ``end`` is when the streams were stopped."""
    inside: list[float] = []
    outside: list[float] = []
    for times in (times for stream in streams for times in stream):
        for before, after in pairwise(times):
            is_inside = any(before < window.end and after > window.begin for window in windows)
            (inside if is_inside else outside).append(1000 * (after - before))
    tokens = [at for stream in streams for times in stream for at in times if at <= end]
    num_inside = sum(window.begin < at <= window.end for at in tokens for window in windows)
    seconds = sum(window.end - window.begin for window in windows)
    first = min(tokens)
    return {
        "tbt_ms": quantiles(inside),
        "tbt_outside_ms": quantiles(outside),
        "decode_tok_s": {
            "inside": num_inside / seconds,
            "outside": (len(tokens) - num_inside) / (end - first - seconds),
        },
        "ttft_s": [window.end - window.begin for window in windows],
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Empty where there is nothing."""
    return {name: percentile(values, q) for name, q in QUANTILES.items()} if values else {}


def row_of(name: str, found: dict[str, Any]) -> dict[str, Any]:
    inside, outside = found["tbt_ms"], found["tbt_outside_ms"]
    return {
        "server": name,
        **{f"{quantile} ms": inside.get(quantile, float("nan")) for quantile in QUANTILES},
        "p50 outside": outside.get("p50", float("nan")),
        "tok/s": found["decode_tok_s"]["inside"],
        "tok/s outside": found["decode_tok_s"]["outside"],
        "TTFT s": percentile(found["ttft_s"], 50),
    }


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Options, and what is the server's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument(
        "--modes", default="mixed,prefill-first,auto", help="of Braid; see braid serve --phases"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--url", help="of another server, such as http://127.0.0.1:8080/v1")
    parser.add_argument("--label", default="server", help="what it is called in the results")
    parser.add_argument(
        "--extra", default="{}", help='more body fields as JSON, such as {"cache_prompt": false}'
    )
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--stream-words", type=int, default=64)
    parser.add_argument("--words", type=int, default=4000, help="of the long prompt")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rest", type=float, default=3.0, help="seconds between two long prompts")
    parser.add_argument("--quick", action="store_true", help="one prompt of 1,000 words")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options, more = parser.parse_known_args()
    if options.quick:
        options.words, options.times, options.rest = 1000, 1, 1.0
    return options, more


def servers(options: argparse.Namespace, more: Sequence[str]) -> Iterator[tuple[str, Server]]:
    """Each with its name; Braid's live until the next one is asked for."""
    extra = json.loads(options.extra)
    if options.url is not None:
        yield options.label, Server(options.url.rstrip("/"), options.model, extra)
        return
    for mode in options.modes.split(","):
        with serving(options.model, "--phases", mode, "--dtype", options.dtype, *more) as url:
            yield f"braid {mode}", Server(f"{url}/v1", options.model, extra)


def main() -> None:
    options, more = arguments()
    described = machine()
    print(describe(described))
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    result: dict[str, Any] = {"machine": described, "config": config | {"server": list(more)}, "servers": {}}
    for name, server in servers(options, more):
        result["servers"][name] = freeze(server, options)
        show(name, [row_of(name, result["servers"][name])])
        save(options.json, result)
    show(
        f"TBT and tokens per second of {options.streams} streams while a prompt of {options.words} words comes "
        f"({options.times} times), and its median TTFT",
        [row_of(name, found) for name, found in result["servers"].items()],
    )
    if options.figure is not None:
        from freeze_figure import draw

        draw(result["servers"], options.figure)


if __name__ == "__main__":
    main()
