"""Check 16: an exception in one request's share of anything ends that request; the others get what they always get."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from braid.core.faults import Fault, Faults

from .asks import Answer, ask_all, run_together
from .rig import ENGINE_POINTS, SERVER_POINTS, Gate, Rig, local, process

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILS = 1
ABSORBED = 0

ENGINE_FAULTS = [
    (Fault(point="compile"), FAILS),
    (Fault(point="admit", phase="text", first=2), FAILS),
    (Fault(point="admit", phase="constraint"), FAILS),
    (Fault(point="admit", phase="embedding"), FAILS),
    (Fault(point="forward", phase="prefill"), ABSORBED),
    (Fault(point="forward", phase="prefill", count=2), FAILS),
    (Fault(point="forward", phase="mixed"), ABSORBED),
    (Fault(point="forward", phase="decode"), ABSORBED),
    (Fault(point="forward", first=3, count=2), FAILS),
    (Fault(point="forward", first=9, count=2), FAILS),
    (Fault(point="head", phase="mixed"), ABSORBED),
    (Fault(point="head", phase="decode", first=2), ABSORBED),
    (Fault(point="head", first=3, count=2), FAILS),
    (Fault(point="sample", first=3), ABSORBED),
    (Fault(point="sample", first=4, count=2), FAILS),
    (Fault(point="row", phase="random", first=3), FAILS),
    (Fault(point="row", phase="greedy", first=2), FAILS),
    (Fault(point="mask", phase="start"), FAILS),
    (Fault(point="mask", phase="step", first=4), FAILS),
    (Fault(point="score", count=2), FAILS),
    (Fault(point="pool", count=2), FAILS),
]
"""Grammars are compiled once, so that comes first. A step that fails is tried again, each request alone."""

SERVER_FAULTS = [
    (Fault(point="server.render"), FAILS),
    (Fault(point="server.encode", first=2), FAILS),
    (Fault(point="server.constraint"), FAILS),
    (Fault(point="server.reader"), FAILS),
    (Fault(point="server.feed", first=3), FAILS),
    (Fault(point="server.finish"), FAILS),
    (Fault(point="server.bytes", first=20), FAILS),
    (Fault(point="server.write", phase="start", first=2), FAILS),
    (Fault(point="server.write", phase="body"), FAILS),
    (Fault(point="server.write", phase="last", first=2), FAILS),
]

WIRE_FAULTS = (
    Fault(point="ipc.decode", first=2),
    Fault(point="ipc.receive", phase="Generate", first=4),
    Fault(point="ipc.send", phase="Deltas", first=3, count=2),
)
"""Outputs that cannot be sent together are sent one by one."""


ORDERS = 3
"""Requests arrive in changing orders, and in a rare one some kind of step does not come."""


def name_of(case: object) -> str | None:
    if isinstance(case, Fault):
        return f"{case.point}-{case.phase or 'any'}-{case.first}x{case.count}"
    return None


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tiny_llama: Path) -> AsyncIterator[Rig]:
    """One engine for all faults: what one of them left behind, the next requests would show."""
    gate = Gate()
    faults = Faults(points=ENGINE_POINTS | SERVER_POINTS, sleep=gate)
    async with local(tiny_llama, faults=faults, gate=gate) as made:
        yield made


def check(answers: dict[str, Answer], undisturbed: dict[str, Answer], num_failing: int) -> None:
    failing = {name: answer for name, answer in answers.items() if answer.failed}
    assert len(failing) == num_failing, failing
    for name, answer in answers.items():
        if not answer.failed:
            assert answer == undisturbed[name], name


@pytest.mark.parametrize(("fault", "num_failing"), ENGINE_FAULTS + SERVER_FAULTS, ids=name_of)
async def test_the_others_notice_nothing(
    rig: Rig, undisturbed: dict[str, Answer], fault: Fault, num_failing: int
) -> None:
    for _ in range(ORDERS):
        answers = await run_together(rig, fault, all_strike=False)
        await rig.settle()
        if not rig.faults.unstruck:
            break
        check(answers, undisturbed, 0)
    assert rig.faults.unstruck == (), "the fault did not happen"
    check(answers, undisturbed, num_failing)


async def test_nothing_is_left_behind(rig: Rig, undisturbed: dict[str, Answer]) -> None:
    check(await run_together(rig), undisturbed, 0)


async def test_messages_between_the_processes(tiny_llama: Path, undisturbed: dict[str, Answer]) -> None:
    async with process(tiny_llama, plans=[WIRE_FAULTS]) as rig:
        rig.allowed |= {500}
        check(await ask_all(rig), undisturbed, len(WIRE_FAULTS))
        check(await ask_all(rig), undisturbed, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_many_faults_at_random(rig: Rig, undisturbed: dict[str, Answer], seed: int) -> None:
    """Several faults of a seeded plan at once: whoever is not hit gets what they always get."""
    random_source = random.Random(seed)
    points = [fault for fault, _ in ENGINE_FAULTS + SERVER_FAULTS if fault.point != "compile"]
    for _ in range(100):
        plan = [
            replace(fault, first=random_source.randint(1, 12), count=random_source.randint(1, 3))
            for fault in random_source.sample(points, 3)
        ]
        answers = await run_together(rig, *plan, all_strike=False)
        for name, answer in answers.items():
            assert answer.failed or answer == undisturbed[name], (seed, plan, name)
        await rig.settle()
