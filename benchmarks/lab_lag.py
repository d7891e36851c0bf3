"""How late a replay sends: against the stub server, bursty (Gamma gaps of shape 0.5) and streaming, beside a plain
asyncio + aiohttp client that plays the same plan. Stub and clients share the machine, each in processes of its own.

Lag is the actual send less the scheduled one, absolute; 16 tokens come 20 ms after a request and 5 ms apart. Goals on
two cores: p99 of at most 5 ms at 300 requests per second and 20 ms at 1,000. Rounds are interleaved; medians are shown.

Run: python benchmarks/lab_lag.py [--rounds 3] [--seconds 20] [--rates 300 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import describe, machine, save, show

from braid.lab.replay.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.replay.run import RunOptions, replay
from braid.lab.replay.target import Target, probe
from braid.lab.table import Trace, TraceInfo, conform

GOALS_MS = {300: 5.0, 1000: 20.0}
TTFT_S, TBT_S = 0.02, 0.005
IN_TOK, OUT_TOK = 64, 16
SHAPE = 0.5
CODE = "import sys; from braid.cli import main; sys.exit(main())"
CLIENTS = ("braid", "aiohttp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rates", type=int, nargs="+", default=list(GOALS_MS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client is not None:
        print(json.dumps(asyncio.run(plain_client(json.loads(args.client.read_text())))))
        return
    with stub() as url:
        found = [
            (rate, client, played(client, plan_of(rate, args.seconds, number), url))
            for number in range(args.rounds)
            for rate in args.rates
            for client in CLIENTS
        ]
    rows = [
        row_of(rate, client, [result for r, c, result in found if (r, c) == (rate, client)])
        for rate in args.rates
        for client in CLIENTS
    ]
    result: dict[str, Any] = {
        "machine": machine(),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "lag": rows,
    }
    print(describe(result["machine"]))
    show(f"send lag, ms; {args.rounds} rounds of {args.seconds:g} s", rows)
    save(args.json, result)


@contextmanager
def stub() -> Iterator[str]:
    words = ["trace", "stub", "--port", "0", "--ttft", str(TTFT_S), "--tbt", str(TBT_S)]
    server = subprocess.Popen([sys.executable, "-c", CODE, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def plan_of(rate: int, seconds: float, seed: int) -> ReplayPlan:
    rng = np.random.default_rng([rate, seed])
    num = int(rate * seconds)
    times = np.cumsum(rng.gamma(SHAPE, 1 / (rate * SHAPE), num))
    times *= seconds / times[-1]  # every round has exactly the stated rate
    frame = pl.DataFrame({"t_s": times, "in_tok": [IN_TOK] * num, "out_tok": [OUT_TOK] * num})
    return build_plan(Trace(conform(frame), TraceInfo(source="gamma gaps")), PlanOptions(seed=seed))


def played(client: str, plan: ReplayPlan, url: str) -> dict[str, Any]:
    return played_by_braid(plan, url) if client == "braid" else played_by_aiohttp(plan, url)


def played_by_braid(plan: ReplayPlan, url: str) -> dict[str, Any]:
    run = replay(plan, Target(url=url), options=RunOptions(), label="lag")
    frame = run.frame
    first = frame["chunk_times_s"].list.first()
    lags, ttfts = frame["sent_s"] - frame["scheduled_s"], first - frame["sent_s"]
    assert not run.head.problems, run.head.problems
    return {
        "lags_s": lags.drop_nulls().to_list(),
        "ttfts_s": ttfts.drop_nulls().to_list(),
        "ok": int((frame["status"] == "ok").sum()),
        "planned": plan.num_requests,
        "senders": run.head.run["num_senders"],
    }


def played_by_aiohttp(plan: ReplayPlan, url: str) -> dict[str, Any]:
    target = Target(url=url)
    facts = probe(target, "ids")
    ids = (facts.vocabulary.ids * (IN_TOK // len(facts.vocabulary.ids) + 1))[:IN_TOK]
    body = {"model": facts.model, "prompt": ids, "max_tokens": OUT_TOK, **facts.fields}
    task = {
        "url": f"{url}/v1/completions",
        "body": json.dumps(body),
        "starts": plan.frame["start_s"].to_list(),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(task, file)
        file.flush()
        command = [sys.executable, __file__, "--client", file.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return {**result, "planned": plan.num_requests, "senders": 1}


async def plain_client(task: dict[str, Any]) -> dict[str, Any]:
    """A task for each request, one session, one event loop: how such a client is usually written."""
    import aiohttp

    headers = {"Content-Type": "application/json"}
    body = task["body"].encode()
    lags: list[float] = []
    ttfts: list[float] = []
    ok = 0

    async def one(session: aiohttp.ClientSession, at: float) -> None:
        nonlocal ok
        await asyncio.sleep(at - time.monotonic())
        sent = time.monotonic()
        lags.append(sent - at)
        first = 0.0
        async with session.post(task["url"], data=body, headers=headers) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    json.loads(line[6:])
                    first = first or time.monotonic()
        ttfts.append(first - sent)
        ok += answer.status == 200

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.monotonic() + 1.0
        await asyncio.gather(*(one(session, start + at) for at in task["starts"]))
    return {"lags_s": lags, "ttfts_s": ttfts, "ok": ok}


def row_of(rate: int, client: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    row: dict[str, Any] = {"req/s": rate, "client": client, "senders": results[0]["senders"]}
    for name, q in (("p50", 50), ("p99", 99), ("max", 100)):
        row[name] = statistics.median(percentile_ms(result["lags_s"], q) for result in results)
    goal = GOALS_MS.get(rate)
    row |= {"goal p99": goal, "met": None if goal is None else row["p99"] <= goal}
    row["TTFT p50"] = statistics.median(percentile_ms(result["ttfts_s"], 50) for result in results)
    row["TTFT p99"] = statistics.median(percentile_ms(result["ttfts_s"], 99) for result in results)
    row["answered"] = sum(result["ok"] for result in results) / sum(result["planned"] for result in results)
    return row


def percentile_ms(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) * 1e3


if __name__ == "__main__":
    main()
