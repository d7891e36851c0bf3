"""What constraints cost: a step beside one without, a compile, and what hostile ones cost everybody else."""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from common import describe, machine, random_prompt, save, show
from streams import Times, run_streams

from braid import LLM, SamplingParams
from braid.core.constraint import Constraint, ConstraintKind
from braid.engine.protocol import GenerateRequest

PROMPT = 32
ENDLESS = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "size": {"type": "integer", "minimum": 0, "maximum": 99999},
            "tags": {"type": "array", "items": {"enum": ["new", "old", "sold"]}, "maxItems": 3},
        },
        "required": ["name", "size", "tags"],
        "additionalProperties": False,
    },
}
"""A schema of the usual kind whose outputs never end."""


def schema(source: dict[str, Any]) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=json.dumps(source))


def lark(source: str) -> Constraint:
    return Constraint(kind=ConstraintKind.LARK, source=source)


def regex(source: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, source=source)


# -- a step ------------------------------------------------------------------------------------------------


def gaps(times: Times) -> list[float]:
    """Milliseconds between the tokens of each stream."""
    return [1000 * (b - a) for stream in times for a, b in itertools.pairwise(stream)]


def measure_steps(llm: LLM, num_streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Median time between tokens, plain and constrained, in interleaved rounds."""
    found: dict[str, list[float]] = {"plain": [], "constrained": []}
    for number in range(rounds + 1):  # the first round warms up: tapes, grammars
        prompts = [random_prompt(PROMPT, 40_000, 100 * number + index) for index in range(num_streams)]
        for name, constraint in (("plain", None), ("constrained", schema(ENDLESS))):
            times = run_streams(llm, prompts, tokens, constraint=constraint)
            if number:
                found[name].append(median(gaps(times)))
    plain, constrained = median(found["plain"]), median(found["constrained"])
    return {
        "streams": num_streams,
        "plain ms": plain,
        "constrained ms": constrained,
        "difference ms": constrained - plain,
        "ratio": constrained / plain,
        "rounds": found,
    }


# -- a compile ---------------------------------------------------------------------------------------------


def fields(count: int, number: int) -> dict[str, Any]:
    names = [f"field_{number}_{index}" for index in range(count)]
    kinds = ({"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "number"}})
    properties = {name: kinds[index % 3] for index, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


SOURCES: dict[str, Callable[[int], Constraint]] = {
    "any object": lambda number: schema({"type": "object", "title": str(number)}),
    "object of 5": lambda number: schema(fields(5, number)),
    "object of 100": lambda number: schema(fields(100, number)),
    "object of 1,000": lambda number: schema(fields(1000, number)),
    "enum of 1,000": lambda number: schema({"enum": [f"{number} value {index}" for index in range(1000)]}),
    "regex": lambda number: regex(rf"{number}-\w+@[a-z]+\.com"),
    "256 KiB schema": lambda number: schema(fields(2900, number)),
}


def measure_compiles(llm: LLM, count: int) -> list[dict[str, Any]]:
    """Milliseconds from the wish to the grammar or its refusal, rehearsal included, each source anew."""
    grammars = llm._core._grammars
    assert grammars is not None
    grammars.compile(regex("warm")).result()
    rows: list[dict[str, Any]] = []
    for name, make in SOURCES.items():
        spent, refused = [], 0
        for number in range(count):
            begin = time.perf_counter()
            refused += grammars.compile(make(number)).exception() is not None
            spent.append(1000 * (time.perf_counter() - begin))
        size = len(make(0).source)
        rows.append(
            {"source": name, "bytes": size, "ms": median(spent), "worst ms": max(spent), "refused": refused}
        )
    return rows


# -- hostile neighbours ------------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[int], Constraint]] = {
    "compiles for ever": lambda number: lark(
        f"start: A\nA: /{number}/ & " + " & ".join(f"/.*{index}.*/" for index in range(250))
    ),
    "deep rules": lambda number: lark(
        "start: r0\n"
        + "\n".join(f"r{index}: r{index + 1}" for index in range(17_000))
        + f'\nr17000: "{number}"'
    ),
    "ambiguous": lambda number: lark(f'start: s\ns: s s s | s s | "a" | "b" | "" | "{number}"'),
    "large enum": lambda number: schema({"enum": [f"{number}{index:05}" for index in range(18_000)]}),
    "slow regex": lambda number: regex(f"({number})?.{{0,5000}}a.{{0,5000}}b"),
    "256 KiB of options": lambda number: schema(
        {"type": "object", "properties": {f"p{number}_{index}": {"type": "string"} for index in range(6500)}}
    ),
}


@contextmanager
def neighbour(llm: LLM, make: Callable[[int], Constraint | None]) -> Iterator[list[str]]:
    """One more client that sends one request after the other; yields how they ended."""
    stop, ends = threading.Event(), list[str]()

    def send() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            wanted = SamplingParams(
                temperature=1.0, seed=number, max_tokens=64, ignore_eos=True, constraint=make(number)
            )
            done: Future[str] = Future()
            llm._core.submit(
                GenerateRequest(f"neighbour-{time.monotonic_ns()}", (1, 2, 3), wanted),
                lambda delta, done=done: delta.finish_reason and done.set_result(delta.finish_reason.value),
                lambda error, done=done: done.set_result("refused"),
            )
            ends.append(done.result())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield ends
    finally:
        stop.set()
        thread.join()


def measure_neighbours(llm: LLM, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """p99 and median time between tokens of four plain streams beside one more client, in interleaved rounds."""
    clients: dict[str, Callable[[int], Constraint | None]] = {"plain": lambda number: None, **HOSTILE}
    found: dict[str, list[float]] = {name: [] for name in clients}
    ended: dict[str, list[str]] = {name: [] for name in clients}
    for number in range(rounds):
        for name, make in clients.items():
            prompts = [random_prompt(PROMPT, 40_000, 1000 + 4 * number + index) for index in range(4)]
            with neighbour(llm, make) as ends:
                found[name] += gaps(run_streams(llm, prompts, tokens))
            ended[name] += ends
    base = quantiles(found["plain"], n=100)[98]
    return [
        {
            "beside a client that is": name,
            "median ms": median(values),
            "p99 ms": quantiles(values, n=100)[98],
            "p99 ratio": quantiles(values, n=100)[98] / base,
            "its requests": ", ".join(f"{ended[name].count(end)} {end}" for end in sorted(set(ended[name]))),
        }
        for name, values in found.items()
    ]


def main() -> None:
    args = _arguments()
    rounds, tokens = (2, 40) if args.quick else (args.rounds, 128)
    with LLM(args.model, max_model_len=1024, max_num_seqs=16) as llm:
        steps = [measure_steps(llm, streams, tokens, rounds) for streams in (1, 8)]
        compiles = measure_compiles(llm, 3 if args.quick else 11)
        beside = measure_neighbours(llm, 3 * tokens, 1 if args.quick else rounds)
        where = machine()
    print(describe(where))
    show("A step: median time between tokens", steps)
    show("A compile", compiles)
    show("Four plain streams beside one more client", beside)
    save(args.json, {"machine": where, "steps": steps, "compiles": compiles, "beside": beside})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two short rounds, about two minutes")
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
