"""What ``experts.py`` lets a store of experts compute: steps of programs whose routing was recorded once. Pure.

A load is a letter and a number of programs, such as ``c4``:

    a   the recording in a single pass, cold; one program
    b   the recording in a loop, every program with the same experts at other places of it (most sharing there can be)
    c   the same, but every program has labels of its own in every layer (no sharing but by chance)
    p   prompts alone, each twice, every program with labels of its own

The truth for several programs lies between b and c.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import ORACLE, expert_cache
from braid.policy.experts.policy import Routed
from braid.policy.experts.slots import Counts, SlotTable
from braid.sim.experts.routes import Routes

PRECISION = 0.886
"""Of experts foretold one layer ahead by the later layer's router, Qwen3-30B-A3B (published by BigMoeOnEdge)."""
FLOOR = "resident"
"""The contender that has all experts in memory."""
MAPPED = ("mmap", "mmap-ahead")
ORDER = (
    *MAPPED,
    *(
        "lru-serial",
        "lru",
        "static",
        "static-learnt",
        "ours-serial",
        "ours",
        "ours+oracle",
        "ours+oracle-auto",
    ),
    *("no-cache", FLOOR),
)
"""Of contenders in tables."""
BASES = {"mmap": MAPPED, "serial": ("lru-serial",), "static": ("static",)}
"""What others are compared with; the better of both ways to map a file."""


class Choice(NamedTuple):
    """Experts of one token in one layer, numbered within it, the router's first choice first."""

    experts: tuple[int, ...]
    weights: tuple[float, ...]


Token = tuple[Choice | None, ...]
"""By layer; None where nothing was recorded."""


class Recording(NamedTuple):
    prompt: tuple[Token, ...]
    answer: tuple[Token, ...]


class Step(NamedTuple):
    """One pass through all layers. ``rows``: choices of every row, by layer."""

    is_prefill: bool
    rows: tuple[tuple[Choice, ...], ...]

    def loads(self, shape: ExpertShape, layer: int) -> dict[int, int]:
        """Rows of every expert that a layer needs, by id."""
        return Counter(shape.id_of(layer, index) for row in self.rows[layer] for index in row.experts)


@dataclass(frozen=True, slots=True)
class Load:
    """
    Raises:
        ValueError: there is no such load.
    """

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"a1|[bcp][1-9]\d?", self.name):
            raise ValueError(
                f"load {self.name!r} is not known; choices: a1, or b, c, p with a number of programs"
            )

    @property
    def variant(self) -> str:
        return self.name[0]

    @property
    def programs(self) -> int:
        return int(self.name[1:])

    @property
    def label(self) -> str:
        many = f"{self.programs} programs" if self.programs > 1 else "one program"
        return {
            "a": "recorded, a single pass, cold",
            "b": f"loop, {many}, same labels",
            "c": f"loop, {many}, own labels",
            "p": f"prompts of {many}, own labels, each twice",
        }[self.variant]


class Work(NamedTuple):
    """In this order: steps that fill the caches, untimed but for prompts, and those that count.

    ``loop``: all steps that programs of this kind go through again and again, whose uses placements are made from.
    """

    prompts: tuple[Step, ...]
    warm_up: tuple[Step, ...]
    measured: tuple[Step, ...]
    loop: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.prompts + self.warm_up + self.measured


def recording_of(routes: Routes, layers: int) -> Recording:
    """So many layers of a recording, evenly spread over its depth.

    Raises:
        ValueError: it has fewer, or no prompt or no answer.
    """
    if not 1 <= layers <= routes.shape.layers:
        raise ValueError(f"the recording has {routes.shape.layers} layers, not {layers}")
    kept = {index * routes.shape.layers // layers: index for index in range(layers)}
    tokens: dict[tuple[int, bool, int], list[Choice | None]] = {}
    for route in routes.routes:
        token = tokens.setdefault((route.turn, not route.is_prefill, route.step), [None] * layers)
        if route.layer in kept:
            experts = tuple(expert % routes.shape.per_layer for expert in route.experts)
            token[kept[route.layer]] = Choice(experts, route.weights or (1 / len(experts),) * len(experts))
    prompt = tuple(tuple(token) for (_, is_answer, _), token in tokens.items() if not is_answer)
    answer = tuple(tuple(token) for (_, is_answer, _), token in tokens.items() if is_answer)
    if not prompt or not answer:
        raise ValueError("the recording needs a prompt and an answer")
    return Recording(prompt, answer)


def written(recording: Recording) -> str:
    """For ``read_back``: other processes need not read a recording's whole table."""
    return json.dumps(recording)


def read_back(text: str) -> Recording:
    def token(layers: Sequence[Any]) -> Token:
        return tuple(layer and Choice(tuple(layer[0]), tuple(layer[1])) for layer in layers)

    prompt, answer = json.loads(text)
    return Recording(tuple(map(token, prompt)), tuple(map(token, answer)))


def relabelled(recording: Recording, per_layer: int, seed: str) -> Recording:
    """With another numbering of the experts in every layer."""
    labels = []
    for layer in range(len(recording.answer[0])):
        order = list(range(per_layer))
        random.Random(f"{seed}/{layer}").shuffle(order)
        labels.append(order)

    def renamed(token: Token) -> Token:
        return tuple(
            choice and Choice(tuple(names[expert] for expert in choice.experts), choice.weights)
            for names, choice in zip(labels, token, strict=True)
        )

    return Recording(tuple(map(renamed, recording.prompt)), tuple(map(renamed, recording.answer)))


def work_of(
    load: Load, recording: Recording, per_layer: int, *, warm_up: int, steps: int, seed: int = 0
) -> Work:
    """
    Args:
        warm_up, steps: of decodes, before it counts and while it does; a single pass has its own number.
    """
    count = load.programs
    same = load.variant in "ab"
    programs = [
        recording if same else relabelled(recording, per_layer, f"{seed}/{number}") for number in range(count)
    ]
    prompts = tuple(_step(program.prompt, is_prefill=True) for program in programs)
    if load.variant == "a":
        answer = tuple(_step([token]) for token in recording.answer)
        return Work(prompts, (), answer, answer)
    if load.variant == "p":
        return Work((), (), prompts + prompts, prompts)
    length = len(recording.answer)
    decodes = [
        _step(
            [
                program.answer[(at + number * length // count) % length]
                for number, program in enumerate(programs)
            ]
        )
        for at in range(max(length, warm_up + steps))
    ]
    return Work(
        prompts,
        tuple(decodes[:warm_up]),
        tuple(decodes[warm_up : warm_up + steps]),
        tuple(decodes[:length]),
    )


def _step(tokens: Sequence[Token], *, is_prefill: bool = False) -> Step:
    rows = tuple(
        tuple(choice for choice in column if choice is not None) for column in zip(*tokens, strict=True)
    )
    return Step(is_prefill, rows)


def foretold(rows: Sequence[Choice], per_layer: int, chance: random.Random) -> tuple[Choice, ...]:
    """What an oracle of the published precision says that a layer will need: each expert is right so often."""
    return tuple(_misled(row, per_layer, chance) for row in rows)


def _misled(row: Choice, per_layer: int, chance: random.Random) -> Choice:
    told = list(row.experts)
    for place in range(len(told)):
        if chance.random() >= PRECISION:
            others = [
                expert for expert in range(per_layer) if expert not in told and expert not in row.experts
            ]
            told[place] = chance.choice(others)
    return Choice(tuple(told), row.weights)


def most_used(work: Work, shape: ExpertShape, count: int) -> list[int]:
    """The static placement that is best in the long run: the experts that most steps of these programs' loop need.

    Not of the measured steps alone: there are so few of them that who knows them knows the future.
    """
    uses: Counter[int] = Counter()
    for step in work.loop:
        for layer in range(shape.layers):
            uses.update(step.loads(shape, layer).keys())
    return [expert for expert, _ in sorted(uses.items(), key=lambda item: (-item[1], item[0]))[:count]]


def slots_for(budget_bytes: int, record_bytes: int, staging: int) -> int:
    """Slots that a budget pays for beside the staging rows."""
    return max(0, budget_bytes // record_bytes - staging)


def belady(work: Work, shape: ExpertShape, slots: int) -> Counts:
    """What the best eviction there can be would have found in the measured steps."""
    calls = [
        Routed(layer, step.loads(shape, layer), {}, step.is_prefill)
        for step in work.steps
        for layer in range(shape.layers)
    ]
    cache = expert_cache(ORACLE, shape, future=[list(call.loads) for call in calls])
    table = SlotTable(shape, slots, cache, floor=0, bypass=False)
    first, before = len(calls) - len(work.measured) * shape.layers, Counts()
    for number, call in enumerate(calls):
        if number == first:
            before = _wanted(table)
        for load in table.use(call).loads:
            table.loaded(load.expert)
        table.release(call.loads)
    after = _wanted(table)
    return Counts(
        after.hits - before.hits,
        after.misses - before.misses,
        after.joins - before.joins,
        after.bypasses - before.bypasses,
    )


def _wanted(table: SlotTable) -> Counts:
    return table.totals("decode") + table.totals("prefill")


# -- what came of it ---------------------------------------------------------------------------------------------


def rows_of(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per load, budget and contender that ended well: medians over its runs, times in ms per token."""
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if "wall_s" in run:
            groups.setdefault((run["load"], run["budget"], run["contender"]), []).append(run)
    floors = {
        load: median(run["wall_s"] / run["tokens"] for run in found)
        for (load, _, name), found in groups.items()
        if name == FLOOR
    }
    rows = [_row(key, found, floors.get(key[0])) for key, found in groups.items()]
    for row in rows:
        row |= {f"x {base}": _ratio(rows, row, names) for base, names in BASES.items()}
    order = {name: place for place, name in enumerate(dict.fromkeys(row["load"] for row in rows))}
    return sorted(rows, key=lambda row: (order[row["load"]], row["budget %"], place_of(row["contender"])))


def _ratio(rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any], names: Sequence[str]) -> float | str:
    """How many times as fast as the fastest of these under the same budget."""
    times = [
        row["ms/token"]
        for row in rows
        if row["contender"] in names and (row["load"], row["budget %"]) == (own["load"], own["budget %"])
    ]
    return min(times) / own["ms/token"] if times else "-"


def _row(
    key: tuple[str, int, str], runs: Sequence[Mapping[str, Any]], floor_s: float | None
) -> dict[str, Any]:
    each = [1e3 * run["wall_s"] / run["tokens"] for run in runs]
    wall = median(each)
    compute, stall = divided(runs, wall, floor_s)
    num_bytes = median(run["read_bytes"] / run["tokens"] for run in runs)
    disk = median(best_rate(run) for run in runs)
    floor = 1e3 * floor_s if floor_s is not None else compute
    wanted = [run for run in runs if run.get("wanted")]
    busy = [run for run in runs if run.get("link_s")]
    told = [run for run in runs if run.get("planning_s") is not None]
    return {
        "load": key[0],
        "budget %": key[1],
        "contender": key[2],
        "ms/token": wall,
        "low": min(each),
        "high": max(each),
        "compute": compute,
        "stall": stall,
        "stall %": 100 * stall / wall,
        "planning %": 100 * median(run["planning_s"] / run["wall_s"] for run in told) if told else "-",
        "MB/token": num_bytes / 1e6,
        "tokens/GB": 1e9 / num_bytes if num_bytes else "-",
        "disk GB/s": disk / 1e9,
        "link GB/s": 1e-9 * median(run["read_bytes"] / run["link_s"] for run in busy) if busy else "-",
        "roofline": roofline_ms(num_bytes, disk, floor),
        "hit %": 100 * median(run["hits"] / run["wanted"] for run in wanted) if wanted else "-",
        "runs": len(runs),
        "steps": min(len(run["step_s"]) for run in runs),
    }


def divided(runs: Sequence[Mapping[str, Any]], wall_ms: float, floor_s: float | None) -> tuple[float, float]:
    """Milliseconds per token of computing experts and of standing still.

    Who computes in mapped memory cannot tell them apart: there computing is what it is with all experts resident.
    """
    told = [run for run in runs if run["compute_s"] is not None]
    if told:
        compute = median(1e3 * run["compute_s"] / run["tokens"] for run in told)
        return compute, median(1e3 * run["stall_s"] / run["tokens"] for run in told)
    compute = min(wall_ms, 1e3 * floor_s) if floor_s is not None else wall_ms
    return compute, wall_ms - compute


def roofline_ms(bytes_per_token: float, disk_rate: float, compute_ms: float) -> float:
    """The least that a token can take: reading what it lacks, or computing, whichever is longer."""
    return max(1e3 * bytes_per_token / disk_rate, compute_ms)


def best_rate(run: Mapping[str, Any]) -> float:
    """Bytes per second of the disk at its best depth, before and after a run."""
    return median(max(rates.values()) for rates in run["disk"])


def place_of(contender: str) -> int:
    return ORDER.index(contender)


def prompts_of(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds per prompt: the very first of a process, other programs' first ones, and all the second time.

    The very first pays for what no later one does: memory is touched, records are checked. Medians over prompts and
    runs.
    """
    found: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if "wall_s" in run and run["load"][0] == "p":
            found.setdefault((run["load"], run["budget"], run["contender"]), []).append(run)
    rows = []
    for (load, budget, contender), those in found.items():
        programs = Load(load).programs
        parts = {"cold ms": (0, 1), "new ms": (1, programs), "again ms": (programs, 2 * programs)}
        row: dict[str, Any] = {"load": load, "budget %": budget, "contender": contender}
        for name, (begin, end) in parts.items():
            seconds = [one for run in those for one in run["step_s"][begin:end]]
            row[name] = 1e3 * median(seconds) if seconds else "-"
        rows.append(row)
    return sorted(rows, key=lambda row: (row["load"], row["budget %"], place_of(row["contender"])))


def differing(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Loads whose results are not the same, bit by bit, in every step that two runs have both computed.

    ``digests`` of a run: checksums of all that was computed up to each step that counts.
    """
    found: dict[str, list[list[int]]] = {}
    for run in runs:
        if run.get("digests"):
            found.setdefault(run["load"], []).append(run["digests"])
    longest = {load: max(those, key=len) for load, those in found.items()}
    return [load for load, those in found.items() if any(one != longest[load][: len(one)] for one in those)]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """So that nobody always comes first, or after the same one."""
    start = turn % len(names)
    order = [*names[start:], *names[:start]]
    return order if turn % 2 == 0 else order[::-1]
