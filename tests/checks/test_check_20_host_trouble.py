"""Check 20: a full disk, a log that nobody reads any more and a clock that steps back do not stop serving."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from braid.server.observe.config import ObserveConfig

from .asks import Answer, ask_all
from .rig import PATIENCE, eventually, local, sample

COMMAND = [sys.executable, "-c", "import sys; from braid.cli import main; sys.exit(main())", "serve"]
SMALL = ["--threads", "1", "--kv-cache-memory", "4MiB", "--offline", "--served-model-name", "tiny"]
BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
FULL = Path("/dev/full")
HOUR = 3600.0
START = 0.1
"""Between two questions to a server whose engine starts: it takes seconds, and questions take them from it."""


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
async def test_the_disk_of_the_request_log_is_full(
    tiny_llama: Path, undisturbed: dict[str, Answer], caplog: pytest.LogCaptureFixture
) -> None:
    async with local(tiny_llama, observe=ObserveConfig(request_log=FULL)) as rig:
        assert await ask_all(rig) == undisturbed
        await eventually(lambda: "the request log is off" in caplog.text)
        assert await ask_all(rig) == undisturbed
        assert sample((await rig.client.get("/metrics")).text, "braid_request_log_dropped_total") > 0
    assert caplog.text.count("the request log is off") == 1


async def test_the_wall_clock_steps_back(
    tiny_llama: Path, undisturbed: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases and their ends live on the monotonic clock: none is lengthened or cut by an hour."""
    body = {"prompt": "abcd" * 16, "max_tokens": 4, "temperature": 0}
    async with local(tiny_llama) as rig:
        for number, seconds in enumerate((HOUR, 1.0)):
            hints = {"session_id": f"s{number}", "agent_hints": {"lease_s": seconds}}
            assert (await rig.post("/v1/completions", {**body, **hints})).status_code == 200
        assert (await rig.stats()).leases_granted == 2
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - HOUR)
        assert await ask_all(rig) == undisturbed

        async def one_is_left() -> bool:
            return (await rig.stats()).num_leases == 1

        await eventually(one_is_left)
        assert (await rig.client.get("/v1/sessions")).status_code == 200


def serve(model: Path, port: int, **streams: object) -> subprocess.Popen[bytes]:
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    words = [*COMMAND, str(model), *SMALL, "--port", str(port)]
    return subprocess.Popen(words, env=env, **streams)  # type: ignore[call-overload, no-any-return]


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.post("/v1/completions", json=BODY)).status_code == 200
    except httpx.TransportError:
        return False


async def test_nobody_reads_the_log(tiny_llama: Path) -> None:
    """Not even the lines of an engine that starts again find a reader."""
    with serve(tiny_llama, 0, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            url = await asyncio.to_thread(_address, process)
            process.stderr.close()
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
                assert await answers(client)
                engine = _engine(process.pid)
                engine.send_signal(signal.SIGKILL)
                await eventually(lambda: not engine.is_running())
                await eventually(lambda: answers(client), every=START)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 60) == 0
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"(http://\S+)/v1$", line.decode().rstrip())
        if found:
            return found[1]
    raise AssertionError("the server ended")


def _engine(pid: int) -> psutil.Process:
    children = psutil.Process(pid).children()
    return next(child for child in children if "braid.engine.process" in " ".join(child.cmdline()))


async def test_standard_error_was_closed_before_the_start(tiny_llama: Path, unused_port: int) -> None:
    with serve(tiny_llama, unused_port, preexec_fn=lambda: os.close(2)) as process:
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{unused_port}", timeout=PATIENCE
            ) as client:
                await eventually(lambda: answers(client), every=START)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 60) == 0
        finally:
            process.kill()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
