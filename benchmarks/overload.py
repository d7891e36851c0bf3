"""Goodput under overload: a real server at once, twice, five and ten times the load that it can carry.

Clients arrive at random, and do not come back when they are turned away. Goodput is the output of answers that were
finished; what an answer cost that was never finished is lost. Every rejection must say when to come back.

``python benchmarks/overload.py [MODEL] [--seconds 20] [--json FILE]``
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from common import describe, machine, save, serving, show

FACTORS = (1, 2, 5, 10)
PROMPT_WORDS, TOKENS = 60, 32
KEYS = tuple(f"key-{number}" for number in range(8))


def body(rng: random.Random) -> dict[str, Any]:
    words = " ".join(str(rng.randrange(10**6)) for _ in range(PROMPT_WORDS))
    return {"prompt": words, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}


class Tally:
    """What became of the requests of one load."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.tokens = 0
        self.seconds: list[float] = []
        self.without_wait = 0

    def note(self, answer: httpx.Response, seconds: float) -> None:
        self.statuses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            self.tokens += answer.json()["usage"]["completion_tokens"]
            self.seconds.append(seconds)
        elif not 1 <= int(answer.headers.get("retry-after", 0)) <= 120:
            self.without_wait += 1


async def ask(client: httpx.AsyncClient, rng: random.Random, tally: Tally) -> None:
    begun = time.perf_counter()
    headers = {"authorization": f"Bearer {rng.choice(KEYS)}"}
    answer = await client.post("/v1/completions", json=body(rng), headers=headers)
    tally.note(answer, time.perf_counter() - begun)


async def capacity(client: httpx.AsyncClient, clients: int, seconds: float) -> float:
    """Requests per second that closed-loop clients get through."""
    rng, tally = random.Random(0), Tally()
    ends = time.perf_counter() + seconds

    async def loop() -> None:
        while time.perf_counter() < ends:
            await ask(client, rng, tally)

    begun = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(clients)))
    return tally.statuses["200"] / (time.perf_counter() - begun)


async def overload(client: httpx.AsyncClient, rate: float, seconds: float, seed: int) -> tuple[Tally, float]:
    """Random arrivals for ``seconds``; the tally, and the time until the last answer."""
    rng, tally = random.Random(seed), Tally()
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        due = begun
        while due < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(ask(client, rng, tally))
            due += rng.expovariate(rate)
    return tally, time.perf_counter() - begun


async def measure(url: str, clients: int, seconds: float) -> list[dict[str, Any]]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await capacity(client, clients, seconds / 4)  # warms up
        rate = await capacity(client, clients, seconds)
        for factor in FACTORS:
            tally, took = await overload(client, factor * rate, seconds, factor)
            rows.append(
                {
                    "load": f"{factor}x",
                    "asked/s": factor * rate,
                    "tokens/s": tally.tokens / took,
                    "finished": tally.statuses["200"],
                    "429": tally.statuses["429"],
                    "503": tally.statuses["503"],
                    "other": tally.statuses.total()
                    - sum(tally.statuses[code] for code in ("200", "429", "503")),
                    "no wait told": tally.without_wait,
                    "median s": median(tally.seconds) if tally.seconds else float("nan"),
                }
            )
    peak = max(row["tokens/s"] for row in rows)
    return [{**row, "of peak": row["tokens/s"] / peak} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each load lasts")
    parser.add_argument("--clients", type=int, default=8, help="closed-loop clients that find the capacity")
    parser.add_argument("--max-queued", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options, more = parser.parse_known_args()
    described = machine()
    print(describe(described))
    keys = [word for key in KEYS for word in ("--api-key", key)]
    with serving(options.model, "--max-queued", str(options.max_queued), *keys, *more) as url:
        rows = asyncio.run(measure(url, options.clients, options.seconds))
    show("goodput under overload", rows)
    save(options.json, {"machine": described, "rows": rows})


if __name__ == "__main__":
    main()
