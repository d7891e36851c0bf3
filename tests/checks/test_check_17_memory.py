"""Check 17: where memory runs out, one request is put back or turned away with 503; nothing ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from braid.core.errors import CapacityError
from braid.core.faults import Fault, FaultKind, Faults

from .asks import Answer, run_together
from .rig import ENGINE_POINTS, Gate, Rig, eventually, local, process

pytestmark = pytest.mark.asyncio(loop_scope="module")


def no_memory(point: str, phase: str = "", first: int = 1, count: int = 1) -> Fault:
    return Fault(point=point, phase=phase, first=first, count=count, kind=FaultKind.MEMORY)


TURNED_AWAY = [
    no_memory("blocks", "start"),
    no_memory("blocks", "start", first=4),
    no_memory("forward", count=2),
    no_memory("forward", first=6, count=2),
    no_memory("head", first=3, count=2),
    no_memory("score", count=2),
    no_memory("pool", count=2),
]
"""A step that fails is tried again, each request alone; one that finds no memory even then is turned away."""
ABSORBED = [
    no_memory("blocks", "grow"),
    no_memory("blocks", "grow", first=3, count=4),
    no_memory("forward"),
    no_memory("forward", "decode", first=3),
    no_memory("head", first=2),
    no_memory("sample", first=3),
]


def name_of(fault: Fault) -> str:
    return f"{fault.point}-{fault.phase or 'any'}-{fault.first}x{fault.count}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tiny_llama: Path) -> AsyncIterator[Rig]:
    gate = Gate()
    async with local(tiny_llama, faults=Faults(points=ENGINE_POINTS, sleep=gate), gate=gate) as made:
        yield made


@pytest.mark.parametrize("fault", TURNED_AWAY, ids=name_of)
async def test_one_request_is_turned_away(rig: Rig, undisturbed: dict[str, Answer], fault: Fault) -> None:
    answers = await run_together(rig, fault)
    failed = [name for name, answer in answers.items() if answer.failed]
    assert len(failed) == 1
    answer = answers[failed[0]]
    assert "no memory" in (answer.error or "")
    assert answer.status == (200 if "stream" in failed[0] else 503)
    assert all(answers[name] == undisturbed[name] for name in answers if name not in failed)
    await rig.settle()


@pytest.mark.parametrize("fault", ABSORBED, ids=name_of)
async def test_nobody_notices(rig: Rig, undisturbed: dict[str, Answer], fault: Fault) -> None:
    preempted = (await rig.stats()).num_preemptions
    assert await run_together(rig, fault) == undisturbed
    grown = fault.count if fault.point == "blocks" else 0
    assert (await rig.stats()).num_preemptions - preempted == grown
    await rig.settle()


async def test_a_lone_request_goes_on_after_each_lack(rig: Rig) -> None:
    """Nobody else runs, so nothing but itself can give it another chance."""
    body = {"prompt": "alone", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    rig.faults.arm([])
    expected = (await rig.post("/v1/completions", body)).json()["choices"]
    rig.faults.arm([no_memory("blocks", "grow", count=3)])
    assert (await rig.post("/v1/completions", body)).json()["choices"] == expected
    assert rig.faults.unstruck == ()
    rig.faults.arm([no_memory("blocks", "start")])
    refused = await rig.post("/v1/completions", {**body, "cache_salt": "x"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    await rig.settle()


@pytest.mark.parametrize("point", ["load.weights", pytest.param("load.kv", marks=pytest.mark.slow)])
async def test_an_engine_that_finds_no_memory_at_its_start_says_so(tiny_llama: Path, point: str) -> None:
    with pytest.raises(CapacityError, match="not enough memory"):
        async with process(tiny_llama, plans=[(no_memory(point),)]):
            pass


@pytest.mark.slow
async def test_an_engine_that_finds_no_memory_when_it_comes_back_tries_again(tiny_llama: Path) -> None:
    dying = Fault(point="forward", first=5, kind=FaultKind.KILL)
    plans = [(dying,), (no_memory("load.weights", first=3),), (no_memory("load.kv"),)]
    async with process(tiny_llama, plans=plans) as rig:
        rig.allowed.add(503)
        body = {"prompt": "x", "max_tokens": 20, "ignore_eos": True}
        assert (await rig.post("/v1/completions", body)).status_code == 503
        await eventually(lambda: rig.engine.is_ready)
        rig.restarts = 3
        assert (await rig.post("/v1/completions", body)).status_code == 200
