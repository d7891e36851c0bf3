"""Reads that fail: the expert is named, nobody else suffers, nothing wrong is computed, and nobody hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch

from braid.core.faults import Fault, FaultKind, Faults
from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, StepPlan, Work
from braid.layers.moe import MoE, Routed
from braid.models.decoder import CausalLM
from braid.runner.experts import ledger, reader
from braid.runner.experts.reader import ExpertReadError
from braid.runner.experts.store import ExpertStore
from braid.runner.kv_store import KVStore
from braid.runner.runner import Runner

from .conftest import Bare, Family, route

WAIT_S = 60


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chosen(bare: Bare, store: ExpertStore, *experts: int, layer: int = 0) -> None:
    """One row per pair of experts, compared with what experts in memory give."""
    x_TD, routed = route(len(experts) // 2, 7)
    routed = routed._replace(ids_Tk=torch.tensor(experts).view(-1, 2))
    out_TD = store.compute(layer, x_TD, routed, act="silu")
    assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))


def alter(bare: Bare, expert: int) -> bytes:
    """Flip a byte of a record; returns the record as it was."""
    size = bare.file.layout.record_bytes
    with bare.file.path.open("r+b") as file:
        file.seek(bare.file.offset(expert))
        record = file.read(size)
        file.seek(bare.file.offset(expert) + 1234)
        file.write(bytes([record[1234] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    return record


@pytest.mark.parametrize("num_slots", [0, 6])
def test_a_read_that_fails_once_fails_one_call(bare: Bare, num_slots: int) -> None:
    faults = Faults([Fault(point="experts.read", first=2)])
    store = bare.store(num_slots, readers=1, faults=faults)
    with pytest.raises(ExpertReadError, match=r"injected at experts\.read"):
        chosen(bare, store, 3, 4)
    chosen(bare, store, 3, 4)
    chosen(bare, store, 4, 5)
    assert store.stats().failed_reads == 1
    store.check_integrity(records=True)
    store.close()


@pytest.mark.parametrize("kind", [FaultKind.ERROR, FaultKind.MEMORY])
def test_a_broken_expert_is_not_read_again_for_every_request(bare: Bare, kind: FaultKind) -> None:
    clock = Clock()
    faults = Faults([Fault(point="experts.read", first=3, count=3, kind=kind)])
    store = bare.store(6, faults=faults, clock=clock)
    chosen(bare, store, 1, 2)
    for reads in (1, 2, 2, 2):  # the batch, the first request alone, and those after it
        with pytest.raises(ExpertReadError, match=r"record 6 \(expert 6 of MoE layer 0\) cannot be read: "):
            chosen(bare, store, 6, 6)
        assert store.stats().failed_reads == reads
    chosen(bare, store, 1, 2)
    clock.now += ledger.PAUSE_S
    with pytest.raises(ExpertReadError):
        chosen(bare, store, 6, 6)
    assert store.stats().failed_reads == 3
    clock.now += ledger.PAUSE_S
    chosen(bare, store, 6, 6)
    store.check_integrity(records=True)
    store.close()


@pytest.mark.parametrize("num_slots", [0, 8])
def test_an_altered_record_is_named_and_never_computed_with(bare: Bare, num_slots: int) -> None:
    alter(bare, 8 + 2)
    store = bare.store(num_slots)
    for _ in range(3):
        with pytest.raises(ExpertReadError, match=r"record 10 \(expert 2 of MoE layer 1\) does not match"):
            chosen(bare, store, 2, 4, layer=1)
    chosen(bare, store, 3, 4, 5, 6, layer=1)
    chosen(bare, store, 2, 4, layer=0)
    store.check_integrity(records=True)
    store.close()


def test_what_is_altered_later_is_seen_where_every_read_is_checked(bare: Bare) -> None:
    store = bare.store(0, always_verify=True)
    chosen(bare, store, 1, 2)
    alter(bare, 2)
    with pytest.raises(ExpertReadError, match=r"record 2 \("):
        chosen(bare, store, 1, 2)
    store.close()


def test_a_record_that_ends_early_is_named(bare: Bare) -> None:
    store = bare.store(4)
    os.truncate(bare.file.path, bare.file.offset(23) + 4096)
    chosen(bare, store, 5, 6, layer=2)
    with pytest.raises(ExpertReadError, match=r"record 23 .* is cut off"):
        chosen(bare, store, 6, 7, layer=2)
    store.check_integrity(records=True)
    store.close()


def test_a_read_that_fails_early_fails_whoever_needs_it_alone(bare: Bare) -> None:
    """With more experts needed than there are rows, the others' rows come back."""
    store = bare.store(1, staging=2, faults=Faults([Fault(point="experts.read", first=3)]))
    with pytest.raises(ExpertReadError):
        chosen(bare, store, 0, 1, 2, 3, 4, 5)
    chosen(bare, store, 0, 1, 2, 3, 4, 5)
    store.check_integrity(records=True)
    store.close()


def test_a_disk_that_hangs_holds_neither_the_end_nor_whoever_waits(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CLOSE_S", 0.05)
    hanging, hangs = threading.Event(), threading.Event()

    def hang(seconds: float) -> None:
        hangs.set()
        hanging.wait(WAIT_S)

    faults = Faults([Fault(point="experts.read", kind=FaultKind.DELAY, count=99)], sleep=hang)
    store = bare.store(4, faults=faults)
    ends: list[BaseException] = []

    def compute() -> None:
        with torch.inference_mode():
            try:
                chosen(bare, store, 0, 1, 2, 3, 4, 5)
            except ExpertReadError as error:
                ends.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    assert hangs.wait(WAIT_S)
    store.close()
    thread.join(WAIT_S)
    assert "closed" in str(ends[0])
    with pytest.raises(ExpertReadError, match="closed"):
        chosen(bare, store, 6, 7)
    hanging.set()


@pytest.mark.parametrize("num_slots", [0, 6])
def test_a_read_that_hangs_fails_those_who_need_it_in_the_end(
    bare: Bare, num_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    faults = Faults(
        [Fault(point="experts.read", kind=FaultKind.DELAY)],
        sleep=lambda seconds: hanging.wait(WAIT_S) and None,
    )
    store = bare.store(num_slots, readers=2, staging=2, faults=faults)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "HANG_S", 0.05)
        with pytest.raises(ExpertReadError, match=r"record 3 .* could not be read within 0\.05 s"):
            chosen(bare, store, 3, 3)
    with pytest.raises(ExpertReadError, match=r"record 3 .* the disk hangs"):
        chosen(bare, store, 3, 4)
    chosen(bare, store, 4, 5)
    hanging.set()
    while store._ledger.snapshot(lambda: bool(store._ledger._stuck)):
        threading.Event().wait(0.001)
    chosen(bare, store, 3, 4)
    store.check_integrity(records=True)
    store.close()


def test_scores_that_are_no_numbers_are_not_learnt(bare: Bare) -> None:
    store = bare.store(4, "mrs")
    x_TD, routed = route(2, 1)
    routed.scores_TX[0, 3] = float("nan")
    store.compute(0, x_TD, routed, act="silu")
    assert all(store.table.cache.worth(expert) < 1 for expert in range(8))
    chosen(bare, store, 1, 2)
    store.close()


def first_layer_choices(model: CausalLM, tokens: int) -> list[set[int]]:
    """The experts of the first MoE layer that each token needs when it is the whole prompt."""
    mixture = next(block.mlp for block in model.blocks if isinstance(block.mlp, MoE))  # type: ignore[union-attr]
    seen: list[Routed] = []
    hook = mixture.router.register_forward_hook(lambda module, args, out: seen.append(out))
    runner = Runner(model, _kv(model), device=torch.device("cpu"))
    for token in range(tokens):
        assert not runner.execute(_plan({"r": (token, 0)})).errors
    hook.remove()
    runner.close()
    return [set(routed.ids_Tk[0].tolist()) for routed in seen]


def _kv(model: CausalLM) -> KVStore:
    return KVStore(
        model.kv_shapes, num_blocks=4, block_size=8, dtype=torch.float32, device=torch.device("cpu")
    )


def _plan(prompts: dict[str, tuple[int, int]]) -> StepPlan:
    """Prompts of one token: ``(token, block)`` by request."""
    spec = SampleSpec(SamplingParams(temperature=0.0), 0, (), ())
    works = tuple(Work(name, [token], 0, [block], spec) for name, (token, block) in prompts.items())
    return StepPlan(1, "mixed", works)


def test_only_requests_that_need_a_failed_expert_fail(family: Callable[[str], Family]) -> None:
    made = family("olmoe")
    needs = first_layer_choices(made.resident, 12)
    broken = min(needs[0])
    other = next(token for token, experts in enumerate(needs) if broken not in experts)
    record = alter(made, broken)  # type: ignore[arg-type]
    model, store = made.stored(10)
    runner = Runner(model, _kv(model), device=torch.device("cpu"))
    try:
        plan = _plan({"needs it": (0, 0), "does not": (other, 1), "needs it too": (0, 2)})
        result = runner.execute(plan)
        assert set(result.errors) == {"needs it", "needs it too"}
        assert all(f"record {broken} " in error for error in result.errors.values())
        assert store.stats().failed_reads == 2
        whole = Runner(made.resident, _kv(made.resident), device=torch.device("cpu"))
        expected = whole.execute(_plan({"does not": (other, 1)}))
        whole.close()
        assert result.tokens["does not"].token_id == expected.tokens["does not"].token_id
        store.check_integrity(records=True)
    finally:
        runner.close()
        store.close()
        with made.file.path.open("r+b") as file:
            file.seek(made.file.offset(broken))
            file.write(record)
