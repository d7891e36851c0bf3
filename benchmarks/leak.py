"""Thousands of requests on a tiny random model, many of them aborted: does every block and every byte come back?

Exits with 1 if blocks are missing at the end, or if the process grew by more than ``--allow`` after the warm-up.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
from common import describe, machine, save, show

from braid import SamplingParams
from braid.core.config import EngineConfig
from braid.core.errors import BraidError
from braid.core.request import Delta
from braid.engine.build import build_engine
from braid.engine.core import EngineCore
from braid.engine.protocol import GenerateRequest

VOCAB = 512
MIB = 1 << 20
ABORT_SHARE = 0.3


class Load:
    """Keeps ``in_flight`` requests going; a share of them is aborted after a random number of tokens."""

    def __init__(self, core: EngineCore, in_flight: int, seed: int) -> None:
        self._core = core
        self._slots = threading.Semaphore(in_flight)
        self._in_flight = in_flight
        self._random = random.Random(seed)
        self._doomed: dict[str, int] = {}
        self.ended = {"finished": 0, "aborted": 0, "failed": 0}

    def run(self, first: int, number: int) -> None:
        """Send requests ``[first, first + number)`` and wait until none is left."""
        for index in range(first, first + number):
            self._slots.acquire()
            self._send(str(index))
        for _ in range(self._in_flight):
            self._slots.acquire()
        self._slots.release(self._in_flight)

    def _send(self, request_id: str) -> None:
        numbers = self._random
        shared = [7] * numbers.choice((0, 16, 64))  # some prompts share blocks of the prefix cache
        prompt = shared + [numbers.randrange(VOCAB) for _ in range(numbers.randrange(1, 120))]
        params = SamplingParams(max_tokens=numbers.randrange(1, 40), ignore_eos=True, seed=int(request_id))
        if numbers.random() < ABORT_SHARE:
            self._doomed[request_id] = numbers.randrange(0, params.max_tokens or 1)
        left = threading.Lock()  # a request leaves once, however it ends

        def leave(how: str) -> None:
            if left.acquire(blocking=False):
                self._doomed.pop(request_id, None)
                self.ended[how] += 1
                self._slots.release()

        def on_delta(delta: Delta) -> None:
            if delta.finish_reason is not None:
                leave("finished")
            elif request_id in self._doomed:
                self._doomed[request_id] -= len(delta.token_ids)
                if self._doomed[request_id] <= 0:
                    self._core.abort(request_id)
                    leave("aborted")

        def on_error(error: BraidError) -> None:
            print(f"request {request_id}: {error}", file=sys.stderr)
            leave("failed")

        self._core.submit(GenerateRequest(request_id, tuple(prompt), params), on_delta, on_error)
        if self._doomed.get(request_id) == 0:  # aborted before its first token
            self._core.abort(request_id)
            leave("aborted")


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        core = _tiny_engine(Path(folder))
    core.start()
    baseline = core.stats().result().num_free_blocks
    load = Load(core, args.in_flight, seed=0)
    process = psutil.Process()
    rows: list[dict[str, Any]] = []
    for done in range(0, args.requests, args.batch):
        load.run(done, args.batch)
        stats = core.stats().result()
        row = {"requests": done + args.batch, "RSS MiB": process.memory_info().rss / MIB}
        rows.append(
            {
                **row,
                **load.ended,
                "preemptions": stats.num_preemptions,
                "free blocks": stats.num_free_blocks,
                "of": baseline,
            }
        )
    core.close()
    _report(rows, baseline, args)


def _report(rows: list[dict[str, Any]], baseline: int, args: argparse.Namespace) -> None:
    where = machine()
    print(describe(where))
    show(f"{args.requests} requests, {args.in_flight} at a time, {ABORT_SHARE:.0%} aborted", rows)
    warm = next(row for row in rows if row["requests"] >= args.warm_up)
    growth = rows[-1]["RSS MiB"] - warm["RSS MiB"]
    missing = baseline - rows[-1]["free blocks"]
    print(f"blocks missing: {missing}; growth after {warm['requests']} requests: {growth:+.1f} MiB")
    save(args.json, {"machine": where, "rows": rows, "growth_mib": growth, "blocks_missing": missing})
    if missing or growth > args.allow or rows[-1]["failed"]:
        sys.exit(1)


def _tiny_engine(folder: Path) -> EngineCore:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=VOCAB,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    engine = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", kv_cache_memory=2 * MIB, threads=1
    )
    return build_engine(engine, eos_token_ids=frozenset()).core


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=500, help="requests between two looks at memory")
    parser.add_argument("--warm-up", type=int, default=1000, help="requests before growth counts")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--allow", type=float, default=8.0, help="growth in MiB that is not called a leak")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
