"""KV below the device in a real engine: the same tokens with it and without, whatever the disk does."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.faults import Fault, Faults
from braid.core.program import ProgramRef
from braid.engine import llm as llm_module
from braid.engine.build import build_engine
from braid.engine.lower import Lower, check_tiers, fingerprint
from braid.engine.protocol import EngineStats, GenerateRequest
from braid.models.registry import build_model
from braid.sched.scheduler import Scheduler

from .conftest import SMALL, assert_nothing_left, small_llm

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
BLOCK_BYTES = 4 * 2 * 2 * 64 * 4
TINY = {"kv_cache_memory": 44 * BLOCK_BYTES, "max_model_len": 160, "max_num_seqs": 4}
"""44 blocks of 4 tokens: one long turn and not much more."""


def conversation(llm: LLM, num_programs: int = 4, num_turns: int = 4) -> list[list[int]]:
    """Programs that take turns; every answer."""
    histories = [[10 + index] * 30 for index in range(num_programs)]
    answers = []
    for number in range(num_turns):
        for index, history in enumerate(histories):
            wait_for_stores(llm)
            answer = turn(llm, f"{index}-{number}", history, str(index))
            answers.append(answer)
            history += [*answer, 100 + number, 50 + index, 60, 61, 62]
    return answers


def turn(llm: LLM, name: str, prompt: list[int], program: str) -> list[int]:
    import queue

    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ref = ProgramRef(owner="o", program=program)
    llm._core.submit(GenerateRequest(name, tuple(prompt), PARAMS, program=ref), inbox.put, inbox.put)
    tokens: list[int] = []
    while True:
        delta = inbox.get(timeout=60)
        tokens += delta.token_ids
        if delta.finish_reason is not None:
            assert delta.finish_reason == "length", delta
            return tokens


def wait_for_stores(llm: LLM) -> EngineStats:
    """Until nothing more goes down."""
    for _ in range(2000):
        if llm._core._loop.post(is_still).result(timeout=60):
            break
        time.sleep(0.01)
    return llm.stats()


def is_still(scheduler: Scheduler, now: float) -> bool:
    transfers = scheduler._transfers
    if transfers is None:
        return True
    return transfers._flight is None and not any(writer._stores for writer in transfers._writers)


@pytest.fixture(autouse=True)
def loads_always_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a load is worth is measured; tests must not hang on that."""
    monkeypatch.setattr("braid.policy.agents.costs.LearntCosts.reload_s", lambda self, num_blocks: 0.0)


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[list[int]]:
    with small_llm(tiny_llama) as llm:
        return conversation(llm)


def test_a_tiny_pool_with_a_disk_gives_the_same_tokens(
    tiny_llama: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    with small_llm(tiny_llama, **TINY, kv_disk=1 << 20, kv_disk_path=str(tmp_path)) as llm:
        assert conversation(llm) == expected
        stats = wait_for_stores(llm)
        assert stats.tiers["disk"]["loaded"] > 0
        assert stats.tiers["disk"]["failed"] == 0
        assert stats.tokens_by_origin["disk_reload"] > 0
        assert_nothing_left(llm)
    assert list(tmp_path.iterdir()) == []


def test_memory_above_disk_gives_the_same_tokens(
    tiny_llama: Path, tmp_path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies of a GPU's host tier, but on a CPU, where nobody would want them."""
    monkeypatch.setattr("braid.engine.build.check_tiers", lambda config, device: None)
    below = {"kv_host": 30 * BLOCK_BYTES, "kv_disk": 1 << 20, "kv_disk_path": str(tmp_path)}
    with small_llm(tiny_llama, **TINY, **below) as llm:
        assert conversation(llm) == expected
        stats = wait_for_stores(llm)
        assert stats.tiers["host"]["slots"] == 30
        assert stats.tiers["host"]["loaded"] + stats.tiers["disk"]["loaded"] > 0
        assert stats.tiers["host"]["stored"] > 0
        assert_nothing_left(llm)


def with_faults(model: Path, folder: Path, faults: Faults) -> Callable[..., Any]:
    def build(config: EngineConfig, **rest: Any) -> Any:
        return build_engine(config, **(rest | {"faults": faults}))

    return build


@pytest.mark.parametrize("place", ["tier.store", "tier.load"])
def test_a_failing_disk_costs_nobody_a_token(
    tiny_llama: Path,
    tmp_path: Path,
    expected: list[list[int]],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Faults([Fault(point=place, first=5)])
    monkeypatch.setattr(llm_module, "build_engine", with_faults(tiny_llama, tmp_path, faults))
    with (
        caplog.at_level(logging.WARNING),
        small_llm(tiny_llama, **TINY, kv_disk=1 << 20, kv_disk_path=str(tmp_path)) as llm,
    ):
        assert conversation(llm) == expected
        assert llm.stats().tiers["disk"]["slots"] == 0
        assert_nothing_left(llm)
    assert not faults.unstruck
    assert caplog.text.count("is off until the next start") == 1


def test_damaged_blocks_are_computed_again(
    tiny_llama: Path, tmp_path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def damaged(file: int, parts: Any, offset: int) -> int:
        count = real(file, parts, offset)
        parts[-1][3] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", damaged)
    with small_llm(tiny_llama, **TINY, kv_disk=1 << 20, kv_disk_path=str(tmp_path)) as llm:
        assert conversation(llm) == expected
        stats = llm.stats()
        assert stats.tiers["disk"]["failed"] > 0
        assert stats.tiers["disk"]["loaded"] == 0
        assert_nothing_left(llm)


def test_a_full_disk_is_a_warning(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        caplog.at_level(logging.WARNING),
        small_llm(tiny_llama, kv_disk=1 << 20, kv_disk_path=str(tmp_path)) as llm,
    ):
        assert len(turn(llm, "a", [1] * 9, "p")) == 6
        assert llm.stats().tiers == {}
    assert "No space left on device" in caplog.text


def test_a_disk_that_cannot_be_read_at_start_is_a_warning(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, reads = os.pread, []

    def failing(*arguments: Any) -> bytes:
        reads.append(arguments)
        if len(reads) == 5:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    options = {"kv_disk": 1 << 20, "kv_disk_path": str(tmp_path), "kv_disk_keep": True}
    with caplog.at_level(logging.WARNING), small_llm(tiny_llama, **options) as llm:
        assert len(turn(llm, "a", [1] * 9, "p")) == 6
        assert llm.stats().tiers == {}
    assert "Input/output error" in caplog.text
    with small_llm(tiny_llama, **options) as llm:
        assert llm.stats().tiers["disk"]["slots"] > 0, "nobody holds the file any more"


SERVE_AND_WAIT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.engine.conftest import small_llm
from tests.engine.test_tiers import TINY, conversation, wait_for_stores
llm = small_llm(Path(sys.argv[1]), **TINY, kv_disk=1 << 20, kv_disk_path=sys.argv[2], kv_disk_keep=True)
answers = conversation(llm)
wait_for_stores(llm)
Path(sys.argv[3]).write_text(repr(answers))
time.sleep(600)
"""


def test_what_is_on_disk_outlives_a_killed_engine(
    tiny_llama: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    done = tmp_path / "answers"
    folder = tmp_path / "kv"
    root = str(Path(__file__).parents[2])
    arguments = [str(tiny_llama), str(folder), str(done), root]
    process = subprocess.Popen([sys.executable, "-c", SERVE_AND_WAIT, *arguments])
    try:
        for _ in range(1200):
            if done.exists() and done.read_text():
                break
            assert process.poll() is None
            time.sleep(0.1)
        assert done.read_text() == repr(expected)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with small_llm(tiny_llama, kv_disk=1 << 20, kv_disk_path=str(folder), kv_disk_keep=True) as llm:
        assert llm.stats().tiers["disk"]["used"] > 0
        prompt = [*[10] * 30, *expected[0], 100, 50, 60, 61, 62]
        assert turn(llm, "again", prompt, "0") == expected[4]
        assert llm.stats().tokens_by_origin["disk_reload"] >= 28
        assert_nothing_left(llm)


def test_the_tiers_are_told_of_at_the_start() -> None:
    lower = Lower({"host": 8, "disk": 3000}, {"disk": [(0, b""), (1, b"")]})
    assert lower.lines(16, 1 << 20) == [
        "KV: host        8.0 MiB  8 blocks = 128 tokens",
        "KV: disk       2.93 GiB  3000 blocks = 48000 tokens, 2 found again",
    ]
    assert Lower().lines(16, 1) == []


def test_a_cpu_has_no_host_tier(tiny_llama: Path) -> None:
    with pytest.raises(InvalidParameterError, match="all KV is in main memory already"):
        small_llm(tiny_llama, kv_host=1 << 20)
    check_tiers(EngineConfig(kv_host=1), torch.device("cuda"))


@pytest.mark.parametrize(
    "options", [{"kv_disk_keep": True}, {"kv_disk_path": "x"}, {"kv_disk": 0}, {"kv_host": 0}]
)
def test_options_that_say_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        EngineConfig(**options)


def test_too_small_a_disk_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="kv_disk is 4096 bytes"):
        small_llm(tiny_llama, kv_disk=4096, kv_disk_path=str(tmp_path))


def test_the_fingerprint_tells_models_formats_and_blocks_apart(tiny_llama: Path) -> None:
    import json

    from braid.runner.kv_store import KVStore

    cpu = torch.device("cpu")
    model = build_model(json.loads((tiny_llama / "config.json").read_text()), dtype=torch.float32, device=cpu)
    model.to_empty(device=cpu)
    for parameter in model.state_dict().values():
        parameter.fill_(0.5)

    def name(block_size: int = 4, dtype: torch.dtype = torch.float32, words: str = "m") -> bytes:
        kv = KVStore(model.kv_shapes, num_blocks=2, block_size=block_size, dtype=dtype, device=cpu)
        return fingerprint(model, kv, {"model": words})

    names = [name(), name(8), name(dtype=torch.bfloat16), name(words="other")]
    assert name() == names[0]
    next(iter(model.state_dict().values())).view(-1)[0] = 0.25
    names.append(name())
    assert len(set(names)) == 5
    assert SMALL["dtype"] == "float32"
