"""Experts in a file, in a real engine: the same tokens with little memory as with all, whatever the disk does."""

from __future__ import annotations

import errno
import logging
import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from braid import LLM, SamplingParams
from braid.checkpoint.convert import convert
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.config import EngineConfig
from braid.core.errors import CheckpointError, InvalidParameterError
from braid.device.machine import usable_cores
from braid.engine.experts import Held, wanted_experts
from braid.engine.protocol import GenerateRequest
from braid.policy.experts.boundary import Boundary, Side, Window
from braid.runner.experts.store import ExpertStore

from .conftest import assert_nothing_left, small_llm

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9] * 20, [10, 11]]
RECORD = 98_304
"""Bytes of one float32 expert: 3 x 128 x 64 numbers, whole pages. There are 16, a token uses 4."""

BLOCK = 6_144
"""Bytes of a KV block of 4 tokens."""


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where expert files are made, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BRAID_CACHE", str(folder))
        yield folder


def answers(llm: LLM) -> list[tuple[int, ...]]:
    return [output.token_ids for output in llm.generate(PROMPTS, PARAMS)]


def store_of(llm: LLM) -> ExpertStore:
    store = llm._core._experts
    assert store is not None
    return store


def checked(llm: LLM) -> None:
    """Nothing is left behind, and the slots hold what was written."""
    assert_nothing_left(llm)
    store_of(llm).check_integrity(records=True)


@pytest.fixture(scope="module")
def plain(tiny_moe: Path) -> list[tuple[int, ...]]:
    """What all experts in memory say."""
    with small_llm(tiny_moe) as llm:
        assert llm.stats().experts is None
        assert llm.info.experts == {}
        return answers(llm)


@pytest.mark.parametrize(
    "options",
    [
        {"expert_memory": "25%"},
        {"expert_memory": 6 * RECORD, "expert_cache": "lru", "expert_scope": "layer"},
        {"expert_memory": "576KiB", "expert_cache": "static", "expert_prefetch": "on"},
        {"expert_memory": "auto"},
    ],
)
def test_the_tokens_are_those_of_all_experts_in_memory(
    tiny_moe: Path, plain: list[tuple[int, ...]], options: dict[str, Any]
) -> None:
    with small_llm(tiny_moe, **options) as llm:
        assert answers(llm) == plain
        stats = llm.stats().experts
        assert stats is not None
        assert stats.slots == {"25%": 4, "auto": 16}.get(options["expert_memory"], 6)
        assert (stats.total, stats.cycle, stats.slot_bytes) == (16, 4, RECORD)
        assert 0 < stats.resident <= stats.slots
        assert sum(layer.hits + layer.misses + layer.bypasses for layer in stats.layers) > 50
        assert stats.bytes_by_cause["demand"] + stats.bytes_by_cause["prefill"] >= stats.resident * RECORD
        assert llm.info.experts["format"] == "float32"
        assert not llm._core.runner._replay._recorded, "a tape would compute with experts that have gone"
        checked(llm)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"expert_memory": "25%"},
            "in main memory: 16 = 1.57 MB (100%), not pinned; experts that the device has not",
        ),
        (
            {"expert_memory": RECORD, "expert_host_memory": "25%", "expert_cache": "lru"},
            "in main memory: 4 = ",
        ),
        (
            {"expert_memory": "50%", "expert_host_memory": 2 * RECORD, "expert_prefetch": "on"},
            "in main memory: 2 = ",
        ),
        ({"expert_memory": "25%", "expert_dispatch": "fetch"}, "are fetched"),
    ],
)
def test_the_tokens_are_those_with_a_tier_between_slots_and_file(
    tiny_moe: Path,
    plain: list[tuple[int, ...]],
    options: dict[str, Any],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, with a CPU in its place."""
    monkeypatch.setattr("braid.engine.expert_tiers.has_host_tier", lambda device: True)
    with small_llm(tiny_moe, **options) as llm:
        for _ in range(3):
            assert answers(llm) == plain
        stats = llm.stats().experts
        assert stats is not None
        assert stats.computed["device"] > 0
        assert (stats.computed["host"] > 0) == (options.get("expert_dispatch") != "fetch")
        assert line in "\n".join(llm.reckoning)
        checked(llm)


def test_main_memory_below_a_cpu_is_refused(tiny_moe: Path) -> None:
    with pytest.raises(InvalidParameterError, match="expert_memory says how much") as caught:
        small_llm(tiny_moe, expert_memory="25%", expert_host_memory="50%")
    assert caught.value.param == "expert_host_memory"


class Restless(Boundary):
    """Moves memory to and fro, whatever it is worth; away from a side that has no more to give."""

    def __init__(self) -> None:
        super().__init__()
        self.to = Side.KV

    def decide(self, window: Window) -> Side | None:
        super().decide(window)
        if self.to not in window.can_grow:
            self.to = Side.EXPERTS if self.to is Side.KV else Side.KV
        self.moves[self.to] += 1
        return self.to


def test_the_tokens_are_those_while_memory_moves_all_the_time(
    tiny_moe: Path, plain: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.engine.memory_split.WINDOW_S", 1e-9)
    monkeypatch.setattr("braid.engine.memory_split.Boundary", Restless)
    options = {"max_model_len": 64, "kv_cache_memory": 40 * BLOCK, "memory_split": "live"}
    with small_llm(tiny_moe, expert_memory="75%", **options) as llm:
        split = llm._core._split
        assert split is not None
        sizes = set()
        for _ in range(4):
            assert answers(llm) == plain
            checked(llm)
            split.check_integrity()
            stats = llm.stats()
            assert stats.experts is not None
            sizes.add((stats.experts.slots, stats.num_blocks))
        moves = stats.policy_state
        assert moves["memory_moves_to_kv"] > 10
        assert moves["memory_moves_to_experts"] > 10
        assert len(sizes) > 1, "nothing has moved"
        assert any("experts and KV share" in line for line in llm.reckoning)


def test_memory_goes_where_it_is_short(tiny_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that need most of the blocks each wait for one another; experts have all that they need."""
    monkeypatch.setattr("braid.engine.memory_split.WINDOW_S", 1e-9)
    with small_llm(
        tiny_moe, expert_memory="100%", max_model_len=64, kv_cache_memory=16 * BLOCK, memory_split="live"
    ) as llm:
        before = llm.stats().num_blocks
        prompts = [[token] * 40 for token in range(1, 7)]
        long = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        for _ in range(4):
            llm.generate(prompts, long)
        stats = llm.stats()
        assert stats.experts is not None
        assert stats.num_blocks > before
        assert 4 <= stats.experts.slots < 16
        checked(llm)


@pytest.mark.parametrize(
    ("options", "is_live"),
    [
        ({"expert_memory": "auto", "kv_cache_memory": None}, True),
        ({"expert_memory": "auto", "kv_cache_memory": None, "memory_split": "fixed"}, False),
        ({"expert_memory": "auto"}, False),
        ({"expert_memory": "50%", "kv_cache_memory": None}, False),
        ({"expert_memory": "50%", "memory_split": "live"}, True),
    ],
)
def test_memory_moves_where_the_machine_decides(
    tiny_moe: Path, options: dict[str, Any], is_live: bool
) -> None:
    with small_llm(tiny_moe, **options) as llm:
        assert (llm._core._split is not None) == is_live


def test_memory_that_cannot_move_is_an_error(tiny_moe: Path) -> None:
    with pytest.raises(InvalidParameterError, match="no experts have slots of their own") as caught:
        small_llm(tiny_moe, memory_split="live")
    assert caught.value.param == "memory_split"


@pytest.mark.skipif(usable_cores() < 2, reason="two lanes need two cores")
@pytest.mark.parametrize("phases", ["split", "auto"])
def test_two_lanes_share_a_store(tiny_moe: Path, plain: list[tuple[int, ...]], phases: str) -> None:
    with small_llm(tiny_moe, expert_memory="25%", phases=phases, threads=2) as llm:
        assert answers(llm) == plain
        checked(llm)


def test_rounded_experts_give_the_same_tokens_at_every_size(tiny_moe: Path, tmp_path: Path) -> None:
    """From the checkpoint, and from the folder that ``braid convert`` makes of it."""
    with small_llm(tiny_moe, expert_format="int8", expert_memory="100%") as llm:
        whole = answers(llm)
        assert llm.stats().experts.slots == 16  # type: ignore[union-attr]
    with small_llm(tiny_moe, expert_format="int8", expert_memory="25%") as llm:
        assert answers(llm) == whole
        checked(llm)
    folder = tmp_path / "converted"
    convert(open_checkpoint(resolve(str(tiny_moe), offline=True)), folder, "int8")
    with small_llm(folder) as llm:
        assert answers(llm) == whole
        assert any(line.startswith("experts: 16 of 0.0287 MB (int8), 16 slots") for line in llm.reckoning)
        assert str(folder) in "\n".join(llm.reckoning)
    with pytest.raises(InvalidParameterError, match="was converted to int8") as caught:
        small_llm(folder, expert_format="int4")
    assert caught.value.param == "expert_format"


def test_the_file_is_made_once(tiny_moe: Path, cache: Path, plain: list[tuple[int, ...]]) -> None:
    made = []
    for _ in range(2):
        with small_llm(tiny_moe, expert_memory="50%") as llm:
            made.append(store_of(llm).file.path.stat().st_mtime_ns)
            assert store_of(llm).file.path.is_relative_to(cache)
    assert made[0] == made[1]


def test_below_a_cycle_it_works_and_says_what_it_costs(
    tiny_moe: Path, plain: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), small_llm(tiny_moe, expert_memory=RECORD) as llm:
        assert answers(llm) == plain
        assert f"at least {3 * RECORD / 1e6:.3g} MB from the file" in "\n".join(llm.reckoning)
        checked(llm)
    assert "holds 1 experts, fewer than the 4 that one token uses" in caplog.text


def test_more_than_all_is_not_taken(tiny_moe: Path) -> None:
    with small_llm(tiny_moe, expert_memory="300%") as llm:
        assert "more than all experts need" in "\n".join(llm.reckoning)
        assert llm.stats().experts.slots == 16  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expert_memory": RECORD - 1}, f"one expert takes {RECORD}"),
        ({"expert_memory": "5%"}, f"one expert takes {RECORD}"),
        ({"expert_cache": "belady"}, "choose one of lru, lfu"),
        ({"expert_cache": "best"}, "choose one of lru, lfu"),
    ],
)
def test_what_cannot_be_is_named(tiny_moe: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words) as caught:
        small_llm(tiny_moe, **options)
    assert caught.value.param == next(iter(options))


@pytest.mark.parametrize(
    "options",
    [
        {"expert_memory": "25%"},
        {"expert_format": "int8"},
        {"expert_cache": "lru"},
        {"expert_scope": "layer"},
        {"expert_prefetch": "on"},
        {"expert_dispatch": "fetch"},
    ],
)
def test_a_model_without_experts_refuses_their_options(tiny_llama: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidParameterError, match=f"{name} is for mixtures of experts") as caught:
        small_llm(tiny_llama, **options)
    assert caught.value.param == name


def test_a_damaged_file_is_refused_at_the_start(tiny_moe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    convert(open_checkpoint(resolve(str(tiny_moe), offline=True)), folder, "int8")
    path = folder / "experts.braid"
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(CheckpointError, match=r"experts\.braid"):
        small_llm(folder)


def test_kv_of_other_experts_is_other_kv(tiny_moe: Path) -> None:
    """What is kept on disk for the next engine must not be found by one with other experts."""
    marks = [Held(EngineConfig()).marks]
    for format in ("float32", "int8"):
        with small_llm(tiny_moe, expert_format=format, expert_memory="100%") as llm:
            marks.append(Held(EngineConfig(), store_of(llm)).marks)
    assert len({str(mark) for mark in marks}) == 3


def test_no_store_unless_it_is_wanted(tiny_moe: Path, tiny_llama: Path) -> None:
    for model in (tiny_moe, tiny_llama):
        checkpoint = open_checkpoint(resolve(str(model), offline=True))
        assert wanted_experts(EngineConfig(model=str(model)), checkpoint, torch.float32) is None


ONE = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)


def run(llm: LLM, prompts: Sequence[int]) -> list[list[int] | str]:
    """For each prompt of one token, all at once, the tokens or what went wrong."""
    inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for index, token in enumerate(prompts):

        def put(item: Any, index: int = index) -> None:
            inbox.put((index, item))

        llm._core.submit(GenerateRequest(f"experts-{index}", (token,), ONE), put, put)
    answers: list[list[int] | str] = [[] for _ in prompts]
    left = len(prompts)
    while left:
        index, delta = inbox.get(timeout=60)
        answer = answers[index]
        assert isinstance(answer, list)
        answer += delta.token_ids
        if delta.finish_reason == "error":
            answers[index] = delta.error
        left -= delta.finish_reason is not None
    return answers


def test_a_disk_that_fails_costs_those_who_need_the_expert(
    tiny_moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.runner.experts.ledger.PAUSE_S", 0.0)
    with small_llm(tiny_moe, expert_memory=RECORD) as llm:
        store = store_of(llm)
        store.resize(0)  # every expert is read whenever it is needed
        needs = {token: experts_of(llm, token, monkeypatch) for token in range(40, 60)}
        guilty, broken = next(
            (token, expert)
            for token, own in needs.items()
            for expert in sorted(own)
            if sum(expert not in other for other in needs.values()) > 3
        )
        prompts = [guilty, *[token for token, other in needs.items() if broken not in other][:3]]
        expected = run(llm, prompts)
        real, offset = os.preadv, store.file.offset(broken)

        def failing(file: int, parts: Any, at: int) -> int:
            if at == offset:
                raise OSError(errno.EIO, "Input/output error")
            return real(file, parts, at)

        with monkeypatch.context() as disk:
            run(
                llm, [token for token, other in needs.items() if broken not in other][-1:]
            )  # it has no slot now
            disk.setattr(os, "preadv", failing)
            for _ in range(3):
                outcome = run(llm, prompts)
                assert store.file.name(broken) in str(outcome[0])
                assert str(store.file.path) not in str(outcome[0]), "that is for the log"
                assert outcome[1:] == expected[1:]
        assert llm.stats().experts.failed_reads > 0  # type: ignore[union-attr]
        assert run(llm, prompts) == expected, "the disk is well again"
        checked(llm)


def experts_of(llm: LLM, token: int, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """What a request for that one token needs."""
    table = store_of(llm).table
    seen: set[int] = set()
    real = table.use

    def use(routed: Any) -> Any:
        seen.update(routed.loads)
        return real(routed)

    with monkeypatch.context() as patch:
        patch.setattr(table, "use", use)
        run(llm, [token])
    return seen
