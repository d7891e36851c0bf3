"""Lanes of an engine: one that hangs is seen although the other works, and readers are told what each does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from braid.core.config import EngineConfig
from braid.core.errors import EngineDeadError, InvalidParameterError
from braid.core.faults import Fault, FaultKind
from braid.core.request import NO_SLO, Delta, Slo
from braid.core.sampling import SamplingParams
from braid.device.machine import usable_cores
from braid.engine.client import ProcessClient
from braid.engine.messages import Generate, Stats, ToEngine
from braid.engine.protocol import EngineStats, GenerateRequest, LaneStats
from braid.policy.phases.policy import Division

from .conftest import SMALL, small_llm

GREEDY = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
needs_two = pytest.mark.skipif(usable_cores() < 2, reason="two lanes need two cores")


async def drain(stream: AsyncIterator[Delta], into: list[int]) -> None:
    async for delta in stream:
        into += delta.token_ids


@needs_two
async def test_a_lane_that_hangs_does_not_hide_behind_the_other(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first prompt is computed, then the lane of prompts stops for ever while decodes go on and on."""
    hanging = Fault(point="forward", phase="prefill", first=2, kind=FaultKind.DELAY, seconds=1e6)
    slow = Fault(point="forward", phase="decode", kind=FaultKind.DELAY, count=10**6, seconds=0.02)
    config = EngineConfig(model=str(tiny_llama), **(SMALL | {"threads": 2, "phases": "static:50/50"}))
    client = ProcessClient(
        config, lambda: frozenset({258}), log_level="critical", hang_timeout=2.0, faults=[(hanging, slow)]
    )
    await client.start()
    try:
        stream = client.generate(GenerateRequest("decodes", (1, 2, 3), GREEDY))
        await anext(stream)
        hung = asyncio.create_task(anext(client.generate(GenerateRequest("hangs", (7,) * 40, GREEDY))))
        decoded: list[int] = []
        with caplog.at_level(logging.ERROR), pytest.raises(EngineDeadError):
            await drain(stream, decoded)
        assert len(decoded) > 10
        with pytest.raises(EngineDeadError):
            await hung
        assert "stopped making progress (prefill)" in caplog.text
    finally:
        await client.close()


@needs_two
def test_statistics_tell_what_each_lane_does(tiny_llama: Path) -> None:
    with small_llm(tiny_llama, threads=2, phases="static:50/50") as llm:
        llm.generate(["Hello", "The quick brown fox"], SamplingParams(temperature=0, max_tokens=8))
        stats = llm.stats()
        assert set(stats.lanes) == {"mixed", "prefill", "decode"}
        assert stats.lanes["mixed"] == LaneStats()
        for lane in ("prefill", "decode"):
            assert stats.lanes[lane].steps >= 1
            assert stats.lanes[lane].busy_s > 0
            assert stats.lanes[lane].units == 0
        assert sum(lane.steps for lane in stats.lanes.values()) == stats.num_steps
        assert stats.division is not None
        assert (stats.division.prefill_units, stats.division.decode_units) == (1, 1)


def test_an_engine_with_one_lane_shows_one(tiny_llama: Path) -> None:
    with small_llm(tiny_llama) as llm:
        llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4))
        assert set(llm.stats().lanes) == {"mixed"}


def test_modes_that_need_lanes_refuse_one(tiny_llama: Path) -> None:
    for options in ({"threads": 1}, {"threads": 2, "partition": "serial"}):
        with pytest.raises(InvalidParameterError, match="needs a lane for each phase"):
            small_llm(tiny_llama, phases="static:50/50", **options)
    with pytest.raises(InvalidParameterError, match="two cores"):
        small_llm(tiny_llama, threads=1, partition="cpu")


def test_auto_does_without_lanes_where_there_are_none(tiny_llama: Path) -> None:
    with small_llm(tiny_llama, threads=1, phases="auto") as llm:
        llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4))
        assert set(llm.stats().lanes) == {"mixed"}
        assert (llm._core.info.phases, llm._core.info.partition) == ("auto", "serial")


def test_limits_of_time_reach_the_scheduler(tiny_llama: Path) -> None:
    slo = Slo(ttft_s=0.5)
    wanted = GenerateRequest("a", (1, 2), GREEDY, slo=slo)
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(Generate(wanted)), type=ToEngine)
    assert message == Generate(wanted)
    with small_llm(tiny_llama) as llm:
        assert llm._core._admit(wanted, 0.0).slo == slo
        assert llm._core._admit(wanted._replace(slo=NO_SLO), 0.0).slo == NO_SLO


def test_lanes_and_divisions_cross_the_socket() -> None:
    stats = EngineStats(
        lanes={"mixed": LaneStats(2, 3, 0.5, 1)}, division=Division(True, 2, 2, 64, why="idle")
    )
    message = Stats(1, stats)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Stats) == message
