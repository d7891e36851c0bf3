"""Measures any OpenAI-compatible server the same way; standard library only, one thread per request.

The method (repeat it exactly for every server, on one machine and one day): streaming ``POST /v1/completions``,
greedy, 64 new tokens, end-of-sequence ignored, prompt caches off or defeated by distinct prompts of 380 common English
words; one warm-up request; then for each concurrency all requests are sent at once.

    prefill tok/s     all prompt tokens / slowest time to first token
    TTFT s            mean time to the first event with a choice
    decode tok/s      per stream: mean of (output tokens - 1) / (end - first token)
    output tok/s      all output tokens / wall time
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = """
the of and to in is that for it was on are as with they be at one have this from or had by but some what there
we can out other were all your when up use word how said an each she which do their time if will way about
many then them would write like so these her long make thing see him two has look more day could go come did
my sound no most number who over know water than call first people may down side been now find any new work
"""


@dataclass(slots=True)
class Timing:
    """One request, in seconds from the moment it was sent."""

    first: float
    end: float
    prompt_tokens: int
    output_tokens: int


def main() -> None:
    args = _arguments()
    stream(args, prompt(args.words, seed=1), args.new_tokens)  # warm up
    rows = [measure(args, concurrency) for concurrency in args.concurrency]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if args.json is not None:
        args.json.write_text(json.dumps({"url": args.url, "rows": rows}, indent=2) + "\n")


def measure(args: argparse.Namespace, concurrency: int) -> dict[str, float]:
    """Send ``concurrency`` requests at once and reckon the four figures."""
    timings: list[Timing] = []

    def one(index: int) -> None:
        timings.append(stream(args, prompt(args.words, seed=100 * concurrency + index), args.new_tokens))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(concurrency)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begin
    if len(timings) < concurrency:
        raise SystemExit(f"{concurrency - len(timings)} of {concurrency} requests failed")
    return {
        "concurrency": concurrency,
        "prefill tok/s": sum(item.prompt_tokens for item in timings) / max(item.first for item in timings),
        "TTFT s": statistics.mean(item.first for item in timings),
        "decode tok/s": statistics.mean(
            (item.output_tokens - 1) / (item.end - item.first) for item in timings
        ),
        "output tok/s": sum(item.output_tokens for item in timings) / wall,
    }


def prompt(words: int, seed: int) -> str:
    """Words that are one token each in most vocabularies."""
    numbers, common = random.Random(seed), WORDS.split()
    return " ".join(numbers.choice(common) for _ in range(words))


def stream(args: argparse.Namespace, text: str, new_tokens: int) -> Timing:
    """One streamed completion."""
    body = {
        "model": args.model,
        "prompt": text,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **json.loads(args.extra),
    }
    url = urllib.parse.urlsplit(args.url)
    connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=600)
    begin = time.perf_counter()
    headers = {"content-type": "application/json"}
    connection.request("POST", f"{url.path}/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read(500)!r}")
    first, usage = None, {}
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event: dict[str, Any] = json.loads(line[6:])
        if event.get("choices") and first is None:
            first = time.perf_counter() - begin
        usage = event.get("usage") or usage
    assert first is not None, "the stream had no choice"
    return Timing(first, time.perf_counter() - begin, usage["prompt_tokens"], usage["completion_tokens"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--words", type=int, default=380)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument(
        "--extra", default="{}", help='more body fields as JSON, for example {"cache_prompt": false}'
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
