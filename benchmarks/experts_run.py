"""One run of one contender of ``experts.py``, in a process of its own: ``python benchmarks/experts_run.py SPEC``.

It gets ready, says on one line what it holds, waits for a line (its memory is limited meanwhile), runs, and says on
another line what came of it.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from experts_work import Choice, Load, Step, Work, foretold, most_used, read_back, slots_for, work_of
from torch import Tensor, nn

import braid.kernels as ops
from braid.checkpoint.expert_file import ExpertFile, open_experts
from braid.core.experts import ExpertShape
from braid.layers.moe import Routed, Router, Routing
from braid.policy.experts.catalog import expert_cache
from braid.policy.experts.slots import Counts
from braid.runner.experts.early import Predicted
from braid.runner.experts.store import STAGING, ExpertStore

ACT = "silu"
LEAST_STEPS = 4
PROBE = "probe"
"""No contender: how much memory a process needs beside experts."""


class Layer(NamedTuple):
    """What one layer of one step is given."""

    routed: Routed
    foretold: Routed | None
    """Of the next layer, where an oracle is asked."""


class Seconds(NamedTuple):
    """``link``: at least one read was under way."""

    compute: float
    stall: float
    planning: float
    link: float


class Contender(Protocol):
    def compute(self, number: int, layer: Layer, x_TD: Tensor, is_prefill: bool) -> Tensor: ...

    def seconds(self) -> Seconds | None:
        """Since the start; None where it cannot be told apart."""
        ...

    def counts(self) -> Counts | None: ...

    def facts(self) -> dict[str, Any]: ...


class Mapped:
    """Records are mapped, kernels read them where they are, and the page cache is the cache.

    Args:
        ahead: the system is told of all experts of a layer before the first is computed (``MADV_WILLNEED``), and not to
            read around what is missing, since disks may be set to read far more than a record.
    """

    def __init__(self, file: ExpertFile, *, ahead: bool) -> None:
        self._file, self._ahead = file, ahead
        descriptor = file.open_file(direct=False).descriptor
        self._memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        os.close(descriptor)
        if ahead:
            self._memory.madvise(mmap.MADV_RANDOM)
        with warnings.catch_warnings():  # nobody writes there
            warnings.simplefilter("ignore", UserWarning)
            rows_B = torch.frombuffer(self._memory, dtype=torch.uint8, offset=file.start)
        self._rows_RB = rows_B.view(file.shape.total, file.layout.record_bytes)
        self._slots = [
            torch.arange(file.shape.id_of(layer, 0), file.shape.id_of(layer + 1, 0))
            for layer in range(file.shape.layers)
        ]

    def compute(self, number: int, layer: Layer, x_TD: Tensor, is_prefill: bool) -> Tensor:
        ids_Tk, weights_Tk, _ = layer.routed
        if self._ahead:
            for index in sorted(set(ids_Tk.flatten().tolist())):
                offset = self._file.offset(self._file.shape.id_of(number, index))
                self._memory.madvise(mmap.MADV_WILLNEED, offset, self._file.layout.record_bytes)
        pairs_PD = torch.empty(ids_Tk.numel(), x_TD.shape[1])
        ops.expert_pairs(
            x_TD, ids_Tk, self._rows_RB, self._slots[number], self._file.layout, pairs_PD, act=ACT
        )
        return ops.combine_pairs(pairs_PD, weights_Tk, x_TD.dtype)

    def seconds(self) -> Seconds | None:
        return None

    def counts(self) -> Counts | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {"is_direct": False}


class Stored:
    """The store of experts as a server has it."""

    def __init__(self, store: ExpertStore) -> None:
        self.store = store
        self._predictor: Callable[[Tensor], object] = lambda x_TD: None

    def foretell_with(self, router: Router) -> None:
        """Asking an oracle costs what asking a router costs."""
        self._predictor = router

    def compute(self, number: int, layer: Layer, x_TD: Tensor, is_prefill: bool) -> Tensor:
        told = layer.foretold

        def predict() -> Sequence[Predicted]:
            assert told is not None
            self._predictor(x_TD)
            return [Predicted(number + 1, 1, told)]

        return self.store.compute(
            number,
            x_TD,
            layer.routed,
            act=ACT,
            is_prefill=is_prefill,
            predict=None if told is None else predict,
        )

    def seconds(self) -> Seconds | None:
        stats = self.store.stats()
        held = self.store.held_s if isinstance(self.store, Unbraided) else 0.0
        return Seconds(stats.compute_s - held, stats.stall_s + held, stats.planning_s, stats.link_busy_s)

    def counts(self) -> Counts | None:
        return self.store.table.totals("decode") + self.store.table.totals("prefill")

    def facts(self) -> dict[str, Any]:
        stats = self.store.stats()
        return {
            "is_direct": self.store.is_direct,
            "readers": self.store.num_readers,
            "slots": stats.slots,
            "store_bytes": dict(stats.bytes_by_cause),
            "prefetched": dict(stats.prefetched),
            "prefetch": self.store.detail()["prefetch"],
        }


class Unbraided(ExpertStore):
    """Without overlap: nothing of a layer is computed until all that it reads has been read."""

    held_s = 0.0

    def _compute_group(self, *args: Any) -> None:
        begin, ledger = time.perf_counter(), self._ledger
        with ledger._changed:
            ledger._changed.wait_for(lambda: ledger.reader.is_idle)
        self.held_s += time.perf_counter() - begin
        super()._compute_group(*args)


def contender(name: str, file: ExpertFile, work: Work, budget_bytes: int, router: Router) -> Contender:
    """
    Raises:
        KeyError: there is none of that name.
    """
    shape = file.shape
    if name in ("mmap", "mmap-ahead"):
        return Mapped(file, ahead=name == "mmap-ahead")
    slots = slots_for(budget_bytes, file.layout.record_bytes, STAGING)
    if name == "resident":
        stored = Stored(ExpertStore(file, shape.total, expert_cache("mrs", shape)))
        fill(stored, shape, file.layout.hidden)
        return stored
    if name == "lru-serial":
        return Stored(Unbraided(file, slots, expert_cache("lru", shape), floor=0, bypass=False))
    caches: Mapping[str, Callable[[], Stored]] = {
        PROBE: lambda: Stored(ExpertStore(file, 0, expert_cache("mrs", shape))),
        "no-cache": lambda: Stored(ExpertStore(file, 0, expert_cache("mrs", shape))),
        "lru": lambda: Stored(ExpertStore(file, slots, expert_cache("lru", shape))),
        "static": lambda: Stored(
            ExpertStore(
                file, slots, expert_cache("static", shape, experts=most_used(work, shape, slots)), floor=0
            )
        ),
        "static-learnt": lambda: Stored(ExpertStore(file, slots, expert_cache("static", shape))),
        "ours": lambda: Stored(ExpertStore(file, slots, expert_cache("mrs", shape))),
        "ours-serial": lambda: Stored(Unbraided(file, slots, expert_cache("mrs", shape))),
        "ours+oracle": lambda: Stored(ExpertStore(file, slots, expert_cache("mrs", shape), prefetch="on")),
        "ours+oracle-auto": lambda: Stored(
            ExpertStore(file, slots, expert_cache("mrs", shape), prefetch="auto")
        ),
    }
    made = caches[name]()
    if "oracle" in name:
        made.foretell_with(router)
    return made


def fill(stored: Stored, shape: ExpertShape, hidden: int) -> None:
    """Read every expert once."""
    ids_Tk = torch.arange(shape.per_layer).view(-1, 1)
    routed = Routed(ids_Tk, torch.ones(ids_Tk.shape), torch.zeros(shape.per_layer, shape.per_layer))
    x_TD = torch.zeros(shape.per_layer, hidden, dtype=torch.bfloat16)
    for number in range(shape.layers):
        stored.compute(number, Layer(routed, None), x_TD, True)
    assert stored.store.stats().resident == shape.total, "not everything is resident"


def routed_of(rows: Sequence[Choice], per_layer: int) -> Routed:
    """The recorded weights stand for the scores."""
    ids_Tk = torch.tensor([row.experts for row in rows])
    weights_Tk = torch.tensor([row.weights for row in rows])
    return Routed(ids_Tk, weights_Tk, torch.zeros(len(rows), per_layer).scatter_(1, ids_Tk, weights_Tk))


def layers_of(step: Step, per_layer: int, chance: random.Random | None) -> list[Layer]:
    """
    Args:
        chance: of the oracle; None: nobody asks it.
    """
    layers = []
    for number, rows in enumerate(step.rows):
        told = None
        if chance is not None and not step.is_prefill and number + 1 < len(step.rows):
            told = routed_of(foretold(step.rows[number + 1], per_layer, chance), per_layer)
        layers.append(Layer(routed_of(rows, per_layer), told))
    return layers


class Runner:
    """Runs steps through a contender, and keeps a checksum of all that it computes.

    Args:
        limit_s: no step is begun after so many seconds, but for the first ones.
    """

    def __init__(self, made: Contender, router: Router, x_RD: Tensor, limit_s: float) -> None:
        self._made, self._router, self._x_RD, self._limit_s = made, router, x_RD, limit_s
        self.digest = 0
        self.digests: list[int] = []
        self.router_s = 0.0

    def run(self, steps: Sequence[Step], oracle: random.Random | None, per_layer: int) -> list[float]:
        """Seconds of every step that was run."""
        prepared = [(layers_of(step, per_layer, oracle), step.is_prefill) for step in steps]
        taken: list[float] = []
        self.digests, self.router_s = [], 0.0
        for layers, is_prefill in prepared:
            if len(taken) >= LEAST_STEPS and sum(taken) > self._limit_s:
                break
            begin = time.perf_counter()
            for number, layer in enumerate(layers):
                x_TD = self._x_RD[: len(layer.routed.ids_Tk)]
                asked = time.perf_counter()
                self._router(x_TD)  # for its cost: what it would choose is recorded
                self.router_s += time.perf_counter() - asked
                y_TD = self._made.compute(number, layer, x_TD, is_prefill)
                self.digest = zlib.crc32(y_TD.view(torch.uint8).numpy().data, self.digest)
            taken.append(time.perf_counter() - begin)
            self.digests.append(self.digest)
        return taken


def read_bytes() -> int:
    """What this process has had read from disks so far, past the page cache or into it."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def own_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def wait_for_limit() -> None:
    print(json.dumps({"own_bytes": own_bytes()}), flush=True)
    sys.stdin.readline()


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """
    Args:
        spec: as ``experts.py`` makes it.
    """
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    file, load = open_experts(Path(spec["path"])), Load(spec["load"])
    shape, hidden = file.shape, file.layout.hidden
    recording = read_back(Path(spec["recording"]).read_text())
    work = work_of(
        load, recording, shape.per_layer, warm_up=spec["warm_up"], steps=spec["steps"], seed=spec["seed"]
    )
    router = Router(hidden, Routing(shape.per_layer, shape.top_k, normalise=True))
    router.weight = nn.Parameter(torch.randn(shape.per_layer, hidden) * hidden**-0.5, requires_grad=False)
    x_RD = torch.randn(max(len(rows) for step in work.steps for rows in step.rows), hidden).bfloat16()
    router(x_RD)
    name = spec["contender"]
    wait_for_limit()
    made = contender(name, file, work, spec["budget_bytes"], router)
    may_be_cut = load.variant in "bc"  # steps of a loop are alike; a recording begins cold
    runner = Runner(made, router, x_RD, spec["seconds"] if may_be_cut else inf)
    oracle = random.Random(spec["seed"]) if "oracle" in name else None
    if name == PROBE:
        runner.run(work.steps[:1], None, shape.per_layer)
        return {"own_bytes": own_bytes()}
    prompts_s = runner.run(work.prompts, oracle, shape.per_layer)
    runner.run(work.warm_up, oracle, shape.per_layer)
    runner.digest = 0
    before = made.seconds(), made.counts(), read_bytes()
    step_s = runner.run(work.measured, oracle, shape.per_layer)
    after = made.seconds(), made.counts(), read_bytes()
    tokens = sum(len(step.rows[0]) for step in work.measured[: len(step_s)])
    return {
        "wall_s": sum(step_s),
        "tokens": tokens,
        "step_s": step_s,
        "prompt_s": prompts_s,
        "router_s": runner.router_s,
        "read_bytes": after[2] - before[2],
        **_seconds(before[0], after[0]),
        **_counts(before[1], after[1]),
        "digests": runner.digests,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "own_bytes": own_bytes(),
        **made.facts(),
    }


def _seconds(before: Seconds | None, after: Seconds | None) -> dict[str, float | None]:
    names = [f"{name}_s" for name in Seconds._fields]
    if before is None or after is None:
        return dict.fromkeys(names)
    return {name: new - old for name, old, new in zip(names, before, after, strict=True)}


def _counts(before: Counts | None, after: Counts | None) -> dict[str, int]:
    if before is None or after is None:
        return {}
    return {
        "hits": after.hits + after.joins - before.hits - before.joins,
        "wanted": after.wanted - before.wanted,
        "bypasses": after.bypasses - before.bypasses,
    }


def main() -> None:
    with torch.inference_mode():
        print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
