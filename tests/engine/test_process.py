"""The supervised engine process: it serves, refuses clearly, comes back from death, and never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq
import zmq.asyncio

from braid.core.config import EngineConfig
from braid.core.errors import BraidError, EngineDeadError, InvalidParameterError
from braid.core.program import Applied, Outcome, ProgramRef, ProgramVerb
from braid.core.request import Delta, FinishReason
from braid.core.sampling import SamplingParams
from braid.engine.client import ProcessClient
from braid.engine.protocol import EngineStats, GenerateRequest
from braid.policy.agents.program import Finish

from .conftest import SMALL

END = frozenset({258})
pytestmark = pytest.mark.asyncio(loop_scope="module")


def config(model: Path, **options: Any) -> EngineConfig:
    return EngineConfig(model=str(model), **(SMALL | options))


async def launch(wanted: EngineConfig) -> ProcessClient:
    client = ProcessClient(wanted, lambda: END, log_level="warning")
    await client.start()
    return client


def request(name: str, count: int = 8, prompt: tuple[int, ...] = (1, 2, 3, 4, 5)) -> GenerateRequest:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    return GenerateRequest(name, prompt, params)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tiny_llama: Path) -> AsyncIterator[ProcessClient]:
    """One for all, since each start of an engine takes seconds."""
    engine = await launch(config(tiny_llama))
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared: ProcessClient) -> ProcessClient:
    """Ready, with nothing left by the test before; what it has counted stays."""
    await until_ready(shared)
    for info in await shared.programs(None):
        await shared.program(ProgramVerb.CLOSE, ProgramRef(owner=info.owner, program=info.program))
    return shared


async def until_ready(client: ProcessClient) -> None:
    while not client.is_ready:
        await asyncio.sleep(0.02)


async def collect(client: ProcessClient, wanted: GenerateRequest) -> list[Delta]:
    return [delta async for delta in client.generate(wanted)]


def tokens(deltas: list[Delta]) -> list[int]:
    """All tokens; how they were cut into deltas depends on how quickly somebody asked."""
    return [token for delta in deltas for token in delta.token_ids]


async def settled(client: ProcessClient) -> EngineStats:
    """Stats once nothing runs and no step is in flight any more."""
    while True:
        stats = await client.stats()
        if stats.num_running + stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks:
            return stats
        await asyncio.sleep(0.01)


async def test_endings_and_programs_cross_the_socket(client: ProcessClient) -> None:
    program = ProgramRef(owner="key", program="p")
    wanted = request("a", 200, tuple(range(20)))._replace(program=program)
    stream = client.generate(wanted)
    await anext(stream)
    await stream.aclose()
    await client.told(program, Finish.STOP, None)
    await settled(client)
    assert client.info is not None
    assert client.info.agent_policy == "braid"
    assert "min_s" in client.info.acts_on
    assert await client.programs("another") == []
    for owner in ("key", None):
        (info,) = await client.programs(owner)
        assert (info.owner, info.program, info.finish, info.num_turns) == ("key", "p", "stop", 1)
        assert info.num_device_blocks == info.num_blocks >= 4


async def test_verbs_and_new_answers_cross_the_socket(client: ProcessClient) -> None:
    program = ProgramRef(owner="key", program="p")
    assert await client.program(ProgramVerb.CLOSE, program) == Outcome(
        "close", Applied.IGNORED, "unknown_program"
    )
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=1)
    deltas = await collect(client, GenerateRequest("a", tuple(range(20)), params, program=program))
    assert deltas[0].prompt_logprobs is not None
    assert [entry and entry.token_id for entry in deltas[0].prompt_logprobs] == [None, *range(1, 20)]
    times = deltas[-1].times
    assert times is not None
    assert min(times.queued or -1, times.prefill or -1, times.decode or -1) >= 0
    assert await client.program(ProgramVerb.PIN, program, 60.0) == Outcome("pin", Applied.APPLIED)
    stats = await client.stats()
    assert (stats.num_programs, stats.num_leases, stats.num_leased_blocks) == (1, 1, 5)
    assert len(stats.block_lifetime.counts) == len(stats.block_lifetime.bounds) + 1
    assert await client.program(ProgramVerb.CLOSE, program) == Outcome("close", Applied.APPLIED)
    assert (await settled(client)).num_leases == 0


async def test_requests_run_side_by_side_and_leave_nothing(client: ProcessClient) -> None:
    before = (await settled(client)).generation_tokens
    alone = await collect(client, request("alone"))
    assert alone[-1].finish_reason is FinishReason.LENGTH
    tokens = [token for delta in alone for token in delta.token_ids]
    assert len(tokens) == 8
    many = await asyncio.gather(*(collect(client, request(f"r{index}")) for index in range(6)))
    for deltas in many:
        assert [token for delta in deltas for token in delta.token_ids] == tokens
    stats = await settled(client)
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.generation_tokens - before == 7 * 8
    assert client.info is not None
    assert client.info.max_model_len == 256
    assert client.info.num_blocks == stats.num_blocks == 400


async def test_leaving_a_stream_aborts_it(client: ProcessClient) -> None:
    before = (await settled(client)).generation_tokens
    stream = client.generate(request("left", count=200))
    await anext(stream)
    await stream.aclose()
    stats = await settled(client)
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.generation_tokens - before < 200


async def test_the_engines_refusals_arrive_as_errors(client: ProcessClient) -> None:
    with pytest.raises(InvalidParameterError, match="vocabulary") as caught:
        await collect(client, request("bad", prompt=(1, 70000)))
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidParameterError) as long:
        await collect(client, request("long", prompt=(1,) * 400))
    assert long.value.code == "context_length_exceeded"
    assert len(await collect(client, request("good"))) > 0


async def test_a_killed_engine_ends_its_requests_and_comes_back(client: ProcessClient) -> None:
    before = await collect(client, request("before"))
    stream = client.generate(request("victim", count=240))
    await anext(stream)
    pid, restarts = client.engine_pid, client.restarts
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        async for _ in stream:
            pass
    assert not client.is_ready
    with pytest.raises(EngineDeadError, match="restarted"):
        await collect(client, request("too early"))
    with pytest.raises(EngineDeadError):
        await client.stats()
    await until_ready(client)
    assert client.restarts == restarts + 1
    assert client.engine_pid != pid
    after = await collect(client, request("after"))
    assert tokens(after) == tokens(before)


async def test_requests_that_meet_a_dying_engine_all_end(client: ProcessClient) -> None:
    pid = client.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    late = []
    while client.is_ready:  # the death has not been noticed yet
        late.append(asyncio.create_task(collect(client, request(f"late{len(late)}"))))
        await asyncio.sleep(0.001)
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(outcome, EngineDeadError) for outcome in outcomes)


async def test_supervision_survives_a_start_that_fails(
    client: ProcessClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = asyncio.create_subprocess_exec, []

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if not failures:
            failures.append(1)
            raise BlockingIOError("no more processes")
        return await real(*args, **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    restarts = client.restarts
    assert client.engine_pid is not None
    os.kill(client.engine_pid, signal.SIGKILL)
    while client.is_ready or client.restarts < restarts + 2:
        await asyncio.sleep(0.01)
    await until_ready(client)
    assert failures
    assert len(await collect(client, request("again"))) > 0


async def test_an_answer_that_nobody_understands_ends_the_life(client: ProcessClient) -> None:
    assert client._engine is not None
    restarts = client.restarts
    context = zmq.asyncio.Context()
    rubbish = context.socket(zmq.PUSH)
    rubbish.connect(client._engine.from_address)
    await rubbish.send(b"\xc1")
    while client.restarts == restarts:
        await asyncio.sleep(0.01)
    rubbish.close()
    context.term()
    await until_ready(client)


async def test_a_long_temporary_folder_is_no_obstacle_and_what_a_dead_engine_is_told_no_error(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    engine = await launch(config(tiny_llama))
    await engine.close()
    assert list(long.iterdir()) == []
    await engine.told(ProgramRef(owner="", program="p"), Finish.TEXT, None)
    with pytest.raises(EngineDeadError):
        await engine.programs(None)


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path, tiny_llama: Path) -> None:
    with pytest.raises(BraidError, match="nowhere"):
        await launch(config(tmp_path / "nowhere"))
    with pytest.raises(BraidError, match="KV"):
        await launch(config(tiny_llama, kv_cache_memory=1000))


async def test_the_engine_does_not_outlive_its_parent(tiny_llama: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio
        from braid.core.config import EngineConfig
        from braid.engine.client import ProcessClient
        async def main():
            config = EngineConfig(model={str(tiny_llama)!r}, **{SMALL!r})
            client = ProcessClient(config, frozenset)
            await client.start()
            print(client.engine_pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    await parent.wait()
    while _alive(pid):
        await asyncio.sleep(0.05)


def _alive(pid: int) -> bool:
    """False once the process is gone or only waits to be reaped by whoever adopted it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
