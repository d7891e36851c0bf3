"""How late a replay sends: against the stub server, bursty (Gamma gaps of shape 0.5) and streaming, beside a plain
asyncio + aiohttp client that plays the same plan. Stub and clients share the machine, each in processes of its own.

Lag is the actual send less the scheduled one, absolute; 16 tokens come 20 ms after a request and 5 ms apart. Goals on
two cores: p99 of at most 5 ms at 300 requests per second and 20 ms at 1,000. Rounds are interleaved; medians are shown.
TTFT from the send and TBT are those that the client saw, beside what the stub did by its own clock ("true").

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
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import polars as pl
from common import describe, machine, save, show

from braid.lab.replay.asking.target import Target, probe
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.replay.run import RunOptions, replay
from braid.lab.table import Trace, TraceInfo, conform

GOALS_MS = {300: 5.0, 1000: 20.0}
TTFT_S, TBT_S = 0.02, 0.005
IN_TOK, OUT_TOK = 64, 16
SHAPE = 0.5
CODE = "import sys; from braid.cli import main; sys.exit(main())"
PACKAGES = ("uvloop", "httptools", "aiohttp", "polars")
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
    result["machine"]["versions"] |= {name: version(name) for name in PACKAGES}
    print(describe(result["machine"]))
    lag = ("req/s", "client", "senders", "p50", "p99", "max", "goal", "met", "ok")
    show(
        f"send lag, ms; {args.rounds} rounds of {args.seconds:g} s",
        [{name: row[name] for name in lag} for row in rows],
    )
    times = ("req/s", "client", *(name for name in rows[0] if "TTFT" in name or "TBT" in name))
    show("seen and true times of tokens, ms", [{name: row[name] for name in times} for row in rows])
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
    """What the client saw, and what the stub did."""
    log = f"{url}/stub/log"
    urlopen(Request(log, method="DELETE")).close()
    seen = played_by_braid(plan, url) if client == "braid" else played_by_aiohttp(plan, url)
    with urlopen(log) as answer:
        entries = [entry for entry in json.load(answer) if entry["prompt_tokens"] == IN_TOK]
    times = [entry["token_times_s"] for entry in entries if len(entry["token_times_s"]) == OUT_TOK]
    true = {
        "true_ttfts_s": [row[0] - entry["arrival_s"] for row, entry in zip(times, entries, strict=True)],
        "true_tbts_s": np.diff(np.array(times), axis=1).ravel().tolist(),
    }
    return {**seen, **true, "planned": plan.num_requests}


def played_by_braid(plan: ReplayPlan, url: str) -> dict[str, Any]:
    frame = (run := replay(plan, Target(url=url), options=RunOptions(), label="lag")).frame
    assert not run.head.problems, run.head.problems
    times = frame["chunk_times_s"]
    return {
        "lags_s": (frame["sent_s"] - frame["scheduled_s"]).drop_nulls().to_list(),
        "ttfts_s": (times.list.first() - frame["sent_s"]).drop_nulls().to_list(),
        "tbts_s": times.list.diff(null_behavior="drop").explode().drop_nulls().to_list(),
        "ok": int((frame["status"] == "ok").sum()),
        "senders": run.head.run["num_senders"],
    }


def played_by_aiohttp(plan: ReplayPlan, url: str) -> dict[str, Any]:
    facts = probe(Target(url=url), "ids")
    ids = (facts.vocabulary.ids * (IN_TOK // len(facts.vocabulary.ids) + 1))[:IN_TOK]
    lengths = dict.fromkeys(facts.length_fields, OUT_TOK)
    body = {"model": facts.model, "prompt": ids, **lengths, **facts.fields}
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
    return {**json.loads(done.stdout), "senders": 1}


async def plain_client(task: dict[str, Any]) -> dict[str, Any]:
    """A task for each request, one session, one event loop: how such a client is usually written."""
    import aiohttp

    headers = {"Content-Type": "application/json"}
    body = task["body"].encode()
    lags: list[float] = []
    ttfts: list[float] = []
    tbts: list[float] = []
    ok = 0

    async def one(session: aiohttp.ClientSession, at: float) -> None:
        nonlocal ok
        await asyncio.sleep(at - time.monotonic())
        sent = time.monotonic()
        lags.append(sent - at)
        times: list[float] = []
        async with session.post(task["url"], data=body, headers=headers) as answer:
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    now = time.monotonic()
                    if json.loads(line[6:])["choices"]:
                        times.append(now)
        ttfts.append(times[0] - sent)
        tbts.extend(later - earlier for earlier, later in pairwise(times))
        ok += answer.status == 200

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.monotonic() + 1.0
        await asyncio.gather(*(one(session, start + at) for at in task["starts"]))
    return {"lags_s": lags, "ttfts_s": ttfts, "tbts_s": tbts, "ok": ok}


def row_of(rate: int, client: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""

    def median(name: str, q: float) -> float:
        return statistics.median(percentile_ms(result[name], q) for result in results)

    row: dict[str, Any] = {"req/s": rate, "client": client, "senders": results[0]["senders"]}
    row |= {"p50": median("lags_s", 50), "p99": median("lags_s", 99), "max": median("lags_s", 100)}
    goal = GOALS_MS.get(rate)
    row |= {"goal": goal, "met": None if goal is None else row["p99"] <= goal}
    for what, name in (("TTFT", "ttfts_s"), ("TBT", "tbts_s")):
        for q in (50, 99):
            row[f"{what} p{q}"] = median(name, q)
            row[f"true {what} p{q}"] = median(f"true_{name}", q)
    row["ok"] = sum(result["ok"] for result in results) / sum(result["planned"] for result in results)
    row["rounds"] = {"p99": [percentile_ms(result["lags_s"], 99) for result in results]}
    return row


def percentile_ms(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q)) * 1e3


if __name__ == "__main__":
    main()
