"""Half an hour of a mixture of experts larger than its memory, while memory moves between experts and KV: does the
process stay within its budget, and do answers stay the same?

    python benchmarks/big_moe.py FOLDER --quick
    python benchmarks/experts_soak.py FOLDER [--minutes 30] [--json F] [--figure F.png]

Two loads take turns, a minute each: one short chat after the other, which leaves most KV blocks empty while experts are
read from the disk; and programs that resend growing histories, several times more than KV holds, so that blocks are
missing. Between the turns one prompt is answered again. The budget is what the start reckons: weights, experts, KV,
activations and the runtime. Exits with 1 if the process was ever more than 5 % above it, if an answer differed, or if
anything is left behind.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from common import describe, machine, random_prompt, save, show

from braid import SamplingParams
from braid.core.config import EngineConfig
from braid.engine.build import Built, build_engine
from braid.engine.core import EngineCore
from braid.engine.protocol import GenerateRequest
from braid.lab.figures.style import BLUE, ORANGE, RED, SOFT, in_style, new_figure

MIB = 1 << 20
EVERY_S = 1.0
TURN_S = 60.0
PROGRAMS = 8
LONGEST = 2400
"""Tokens of a program's history; then it begins anew."""
PROBE = "probe"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="made by big_moe.py")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--expert-memory", default="50%")
    parser.add_argument("--kv-mib", type=int, default=48)
    parser.add_argument("--memory-split", default="live", help="fixed, to compare answers per minute with")
    parser.add_argument("--allow", type=float, default=0.05, help="part of the budget that may be added")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


class Sampler(threading.Thread):
    """Looks at the process once a second."""

    def __init__(self, core: EngineCore) -> None:
        super().__init__(daemon=True)
        self.rows: list[dict[str, Any]] = []
        self.load = "start"
        self._core, self._process, self._end = core, psutil.Process(), threading.Event()

    def run(self) -> None:
        begun = time.perf_counter()
        while not self._end.wait(EVERY_S):
            stats = self._core.stats().result()
            assert stats.experts is not None
            self.rows.append(
                {
                    "s": time.perf_counter() - begun,
                    "load": self.load,
                    "rss": self._process.memory_info().rss,
                    "slots": stats.experts.slots,
                    "blocks": stats.num_blocks,
                    "free": stats.num_free_blocks,
                    "to_kv": stats.policy_state.get("memory_moves_to_kv", 0.0),
                    "to_experts": stats.policy_state.get("memory_moves_to_experts", 0.0),
                }
            )

    def close(self) -> None:
        self._end.set()
        self.join()


class Asker:
    """Asks the engine, and waits."""

    def __init__(self, core: EngineCore, vocab_size: int) -> None:
        self._core, self.vocab_size, self._number = core, vocab_size, 0

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """All at once; the tokens of each.

        Raises:
            SystemExit: one failed.
        """
        inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        for index, prompt in enumerate(prompts):
            self._number += 1

            def put(item: Any, index: int = index) -> None:
                inbox.put((index, item))

            self._core.submit(GenerateRequest(f"soak-{self._number}", tuple(prompt), params), put, put)
        answers: list[list[int]] = [[] for _ in prompts]
        left = len(prompts)
        while left:
            index, delta = inbox.get()
            if getattr(delta, "error", True):
                raise SystemExit(f"a request failed: {delta}")
            answers[index] += delta.token_ids
            left -= delta.finish_reason is not None
        return answers


def chat(asker: Asker, seeds: Iterator[int], until: float) -> int:
    """Answers."""
    count = 0
    while time.perf_counter() < until:
        count += len(asker.ask([random_prompt(12, asker.vocab_size, next(seeds))], 48))
    return count


def programs(asker: Asker, seeds: Iterator[int], until: float) -> int:
    """Answers."""
    count = 0
    histories = [random_prompt(400, asker.vocab_size, next(seeds)) for _ in range(PROGRAMS)]
    while time.perf_counter() < until:
        for history, answer in zip(histories, asker.ask(histories, 16), strict=True):
            history += [*answer, *random_prompt(120, asker.vocab_size, next(seeds))]
            if len(history) > LONGEST:
                history[:] = random_prompt(400, asker.vocab_size, next(seeds))
        count += PROGRAMS
    return count


def soak(built: Built, options: argparse.Namespace) -> dict[str, Any]:
    core = built.core
    core.start()
    sampler = Sampler(core)
    asker = Asker(core, core.info.vocab_size)
    numbers = random.Random(options.seed)
    seeds = iter(lambda: numbers.randrange(1 << 40), None)
    probe = random_prompt(64, asker.vocab_size, options.seed)
    expected = asker.ask([probe], 24)
    sampler.start()
    end, turn, wrong = time.perf_counter() + 60 * options.minutes, 0, 0
    answers: dict[str, list[float]] = {load.__name__: [0, 0.0] for load in (chat, programs)}
    """By load, and in how many seconds."""
    while (now := time.perf_counter()) < end:
        load = (chat, programs)[turn % 2]
        sampler.load = load.__name__
        answers[load.__name__][0] += load(asker, seeds, min(end, now + TURN_S))
        answers[load.__name__][1] += time.perf_counter() - now
        sampler.load = PROBE
        wrong += asker.ask([probe], 24) != expected
        turn += 1
        row = sampler.rows[-1]
        print(
            f"{row['s']:.0f} s, {load.__name__}: {row['rss'] / MIB:.0f} MiB, {row['slots']} slots, "
            f"{row['blocks']} blocks, {row['to_kv']:.0f} moves to KV, {row['to_experts']:.0f} to experts",
            flush=True,
        )
    sampler.close()
    stats = core.stats().result()
    left = stats.num_blocks - stats.num_free_blocks
    core.close()
    slot_bytes = 0 if stats.experts is None else stats.experts.slot_bytes
    return {
        "slot_bytes": slot_bytes,
        "rows": sampler.rows,
        "turns": turn,
        "different_answers": wrong,
        "answers_min": {name: 60 * count / max(1e-9, seconds) for name, (count, seconds) in answers.items()},
        "blocks_left": left,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """The boundary and the process over time."""
    rows = result["rows"]
    minutes = [row["s"] / 60 for row in rows]
    with in_style():
        figure, axes = new_figure(2, 1, 5.4)
        upper, lower = axes[0, 0], axes[1, 0]
        experts = [row["slots"] * result["slot_bytes"] / MIB for row in rows]
        kv = [row["blocks"] * result["block_bytes"] / MIB for row in rows]
        upper.stackplot(minutes, experts, kv, colors=[BLUE, ORANGE], labels=["experts", "KV"], alpha=0.8)
        upper.set_title("Memory that experts and KV share")
        upper.set_ylabel("MiB")
        upper.legend(loc="lower right", fontsize=8)
        lower.plot(minutes, [row["rss"] / MIB for row in rows], color=BLUE, label="the process")
        lower.axhline(result["budget_bytes"] / MIB, color=RED, linewidth=1, label="its budget")
        lower.set_ylim(0, 1.15 * result["budget_bytes"] / MIB)
        lower.set_title("Resident memory")
        lower.set_ylabel("MiB")
        lower.set_xlabel("minutes")
        lower.legend(loc="lower right", fontsize=8)
        for axis in (upper, lower):
            axis.set_xlim(0, minutes[-1])
            for begin, end in _spans(rows):
                axis.axvspan(begin / 60, end / 60, color=SOFT, alpha=0.18, linewidth=0)
        figure.text(
            0.99, 0.99, "shaded: programs with long histories", ha="right", va="top", fontsize=7, color=SOFT
        )
        figure.savefig(path)


def _spans(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Seconds with programs."""
    spans: list[tuple[float, float]] = []
    for row in rows:
        if row["load"] == programs.__name__:
            if spans and row["s"] - spans[-1][1] < 3 * EVERY_S:
                spans[-1] = spans[-1][0], row["s"]
            else:
                spans.append((row["s"], row["s"]))
    return spans


def main() -> None:
    options = arguments()
    where = machine()
    print(describe(where))
    config = EngineConfig(
        model=str(options.folder),
        device="cpu",
        expert_memory=options.expert_memory,
        kv_cache_memory=options.kv_mib * MIB,
        max_model_len=4096,
        max_num_seqs=16,
        memory_split=options.memory_split,
    )
    built = build_engine(config, eos_token_ids=frozenset())
    plan = built.plan
    budget = plan.budget_bytes - plan.spare_bytes
    print("\n".join(built.reckoning))
    result = {
        "machine": where,
        "config": {name: str(value) for name, value in vars(options).items()},
        "budget_bytes": budget,
        "block_bytes": plan.block_size * plan.kv_bytes_per_token,
        **soak(built, options),
    }
    rows = result["rows"]
    peak = max(row["rss"] for row in rows)
    above = peak / budget - 1
    result["peak_bytes"] = peak
    latest = rows[-1]
    show(
        "memory, MiB",
        [
            {
                "budget": budget / MIB,
                "highest": peak / MIB,
                "of it": f"{1 + above:.1%}",
                "slots": f"{min(row['slots'] for row in rows)}-{max(row['slots'] for row in rows)}",
                "blocks": f"{min(row['blocks'] for row in rows)}-{max(row['blocks'] for row in rows)}",
                "moves": int(latest["to_kv"] + latest["to_experts"]),
                **{f"{name}/min": rate for name, rate in result["answers_min"].items()},
                "other answers": result["different_answers"],
                "blocks left": result["blocks_left"],
            }
        ],
    )
    save(options.json, result)
    if options.figure is not None:
        draw(result, options.figure)
    if above > options.allow or result["different_answers"] or result["blocks_left"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
