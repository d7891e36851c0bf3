"""Two threads at one store: as prefill and decode lanes are."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from braid.core.faults import Fault, FaultKind, Faults

from .conftest import SHAPE, Bare, route

WAIT_S = 60


def start(call: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """On a thread of its own; what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


@pytest.mark.parametrize(("num_slots", "staging"), [(0, 1), (1, 1), (2, 2), (9, 3), (24, 1)])
def test_prompts_and_decodes_beside_each_other_are_right_and_never_wedge(
    bare: Bare, num_slots: int, staging: int
) -> None:
    store = bare.store(num_slots, "mrs", staging=staging)

    def steps(seed: int, rows: int, count: int) -> None:
        for step in range(count):
            for layer in range(SHAPE.layers):
                x_TD, routed = route(rows, 1000 * seed + 10 * step + layer)
                out_TD = store.compute(layer, x_TD, routed, act="silu", is_prefill=rows > 1)
                assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))

    lanes = [start(lambda: steps(1, 1, 6)), start(lambda: steps(2, 16, 2)), start(lambda: steps(3, 2, 4))]
    for number in (5, 0, 24, num_slots):
        store.resize(number)
    for thread, errors in lanes:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "wedged"
        assert not errors, errors
    store.check_integrity(records=True)
    store.close()


class Gate:
    """Reads wait at it until it is opened; ``reached`` when the first has come."""

    def __init__(self, **fault: int) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        plan = [Fault(point="experts.read", kind=FaultKind.DELAY, **fault)]  # type: ignore[arg-type]
        self.faults = Faults(plan, sleep=lambda seconds: self._wait())

    def _wait(self) -> None:
        self.reached.set()
        self.opened.wait(WAIT_S)


@pytest.mark.parametrize("num_slots", [0, 4])
def test_an_expert_that_both_need_is_read_once(bare: Bare, num_slots: int) -> None:
    gate = Gate()
    store = bare.store(num_slots, readers=1, faults=gate.faults)
    x_TD, routed = route(1, 3, [2, 5])

    def compute() -> None:
        assert torch.equal(store.compute(0, x_TD, routed, act="silu"), bare.expected(0, x_TD, routed))

    first = start(compute)
    assert gate.reached.wait(WAIT_S)
    second = start(compute)
    while len(store._ledger._tasks) < 2:
        assert second[0].is_alive()
        threading.Event().wait(0.001)
    gate.opened.set()
    for thread, errors in (first, second):
        thread.join(WAIT_S)
        assert not errors, errors
    assert store.detail()["reads"] == 2
    store.check_integrity(records=True)
    store.close()


def test_one_that_waits_for_its_disk_stops_nobody_else(bare: Bare) -> None:
    """It holds what it has in use, and others compute in what is left."""
    gate = Gate(first=3)
    store = bare.store(4, readers=2, staging=2, faults=gate.faults)
    held = route(1, 3, [0, 1])
    store.compute(0, *held, act="silu")
    x_TD, routed = route(2, 4)
    routed = routed._replace(ids_Tk=torch.tensor([[0, 1], [2, 0]]))
    outs: list[torch.Tensor] = []
    waits = start(lambda: outs.append(store.compute(0, x_TD, routed, act="silu")))
    assert gate.reached.wait(WAIT_S)
    for seed in range(4):
        other_TD, others = route(4, seed)
        assert torch.equal(store.compute(1, other_TD, others, act="silu"), bare.expected(1, other_TD, others))
    assert waits[0].is_alive()
    gate.opened.set()
    waits[0].join(WAIT_S)
    assert torch.equal(outs[0], bare.expected(0, x_TD, routed))
    store.check_integrity(records=True)
    store.close()


def test_decodes_are_read_for_before_prompts(bare: Bare) -> None:
    order: list[str] = []
    gate = Gate()
    faults = gate.faults
    inner = faults.visit

    def visit(point: str, phase: str = "") -> None:
        order.append(phase)
        inner(point, phase)

    faults.visit = visit  # type: ignore[method-assign]
    store = bare.store(12, readers=1, faults=faults)

    def compute(layer: int, rows: int) -> None:
        store.compute(layer, *route(rows, layer), act="silu", is_prefill=rows > 1)

    prompt = start(lambda: compute(0, 16))
    assert gate.reached.wait(WAIT_S)
    decode = start(lambda: compute(1, 1))
    while len(store._ledger._tasks) < 2:
        threading.Event().wait(0.001)
    gate.opened.set()
    for thread, errors in (prompt, decode):
        thread.join(WAIT_S)
        assert not errors, errors
    assert order[:3] == ["prefill", "demand", "demand"]
    assert set(order[3:]) == {"prefill"}
    store.close()
