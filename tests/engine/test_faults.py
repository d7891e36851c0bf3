"""The fault wall: a fault hits its own request; the others' tokens stay what they were."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import braid.runner.runner as runner_module
from braid import LLM, SamplingParams
from braid.core.errors import BraidError, EngineDeadError
from braid.core.request import Delta
from braid.core.step import StepPlan, StepResult, Work
from braid.device.machine import usable_cores
from braid.engine.protocol import GenerateRequest
from braid.runner.batch import build_batch
from braid.runner.lane import MAX_DEATHS

from .conftest import assert_nothing_left, small_llm

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
POISON = 77


def run(llm: LLM, prompts: Sequence[tuple[int, ...]]) -> list[list[Delta]]:
    """Generate for all prompts at once; every request's deltas, errors included."""
    inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for index, prompt in enumerate(prompts):

        def put(item: Any, index: int = index) -> None:
            inbox.put((index, item))

        llm._core.submit(GenerateRequest(f"fault-{index}", prompt, PARAMS), put, put)
    deltas: list[list[Delta]] = [[] for _ in prompts]
    left = len(prompts)
    while left:
        index, item = inbox.get()
        deltas[index].append(item)
        left -= item.finish_reason is not None
    return deltas


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


GOOD = [(1, 2, 3), (4, 5, 6, 7, 8), (9,) * 20]


def test_a_failing_step_costs_only_the_guilty_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [tokens(deltas) for deltas in run(llm, GOOD)]

    def failing(works: Sequence[Work], *rest: Any) -> Any:
        if any(POISON in work.token_ids for work in works):
            raise RuntimeError("injected")
        return build_batch(works, *rest)

    monkeypatch.setattr(runner_module, "build_batch", failing)
    outcome = run(llm, [GOOD[0], (POISON, 1), GOOD[1], GOOD[2]])
    assert outcome[1][-1].finish_reason == "error"
    assert "injected" in (outcome[1][-1].error or "")
    assert [tokens(outcome[index]) for index in (0, 2, 3)] == expected


def test_a_failed_prefix_is_never_reused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tuple(range(40))
    clean = tokens(run(llm, [prompt[:39]])[0])

    def failing(works: Sequence[Work], *rest: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "build_batch", failing)
        assert run(llm, [(99, *prompt)])[0][-1].finish_reason == "error"
    again = run(llm, [(99, *prompt)])[0]
    assert again[-1].num_cached_tokens == 0
    assert tokens(run(llm, [prompt[:39]])[0]) == clean


def test_a_failure_leaves_what_others_cached(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tuple(range(40))
    run(llm, [shared])

    def failing(works: Sequence[Work], *rest: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "build_batch", failing)
        assert run(llm, [(*shared, 99, 98)])[0][-1].finish_reason == "error"
    assert run(llm, [(*shared, 99, 98)])[0][-1].num_cached_tokens == 40


def test_every_request_hears_that_the_engine_was_closed(tiny_llama: Path) -> None:
    for delay in (0, 1, 2):
        engine = small_llm(tiny_llama)
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for index in range(20):
            params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
            engine._core.submit(
                GenerateRequest(f"r{index}", (1, 2, 3), params), lambda delta: None, heard.put
            )
            if index == 10 * delay:
                engine._core.stats().result()
        engine.close()
        assert all(isinstance(heard.get(timeout=10), EngineDeadError) for _ in range(20))


def test_a_lane_that_dies_again_and_again_ends_the_engine_with_errors(
    llm_that_dies: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(plan: Any) -> Any:
        raise SystemExit("injected")

    monkeypatch.setattr(llm_that_dies._core.runner, "execute", dying)
    for _ in range(MAX_DEATHS - 1):
        with pytest.raises(BraidError, match="injected") as caught:
            llm_that_dies.generate("Hello", PARAMS)
        assert not isinstance(caught.value, EngineDeadError)
    for _ in range(2):
        with pytest.raises(EngineDeadError):
            llm_that_dies.generate("Hello", PARAMS)


def dies_of(poison: int, runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with that token ends the thread that computes it."""
    execute = runner.execute

    def deadly(plan: StepPlan) -> StepResult:
        result: StepResult = execute(plan)
        if any(poison in work.token_ids for work in plan.works):
            raise SystemExit("injected")
        return result

    monkeypatch.setattr(runner, "execute", deadly)


def test_a_lane_that_dies_costs_its_step_and_comes_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [tokens(deltas) for deltas in run(llm, GOOD)]
    dies_of(POISON, llm._core.runner, monkeypatch)
    for _ in range(2 * MAX_DEATHS):
        assert "injected" in (run(llm, [(POISON, 1)])[0][-1].error or "")
        assert [tokens(deltas) for deltas in run(llm, GOOD)] == expected
    assert llm.stats().lanes["mixed"].restarts == 2 * MAX_DEATHS


@pytest.mark.skipif(usable_cores() < 2, reason="two lanes need two cores")
def test_the_other_lane_serves_on_while_one_dies(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts die in their lane; those who decode meanwhile keep their tokens, and blocks come back."""
    with small_llm(tiny_llama, threads=2, phases="static:50/50") as engine:
        expected = [tokens(deltas) for deltas in run(engine, GOOD)]
        dies_of(POISON, engine._core.runner, monkeypatch)
        prompts = [GOOD[0], (POISON, 1), GOOD[1], (POISON, 2), GOOD[2]]
        for round in range(6):
            outcome = run(engine, prompts[round % 2 :] + prompts[: round % 2])
            good = [tokens(deltas) for deltas in outcome if deltas[-1].finish_reason != "error"]
            bad = [deltas[-1].error or "" for deltas in outcome if deltas[-1].finish_reason == "error"]
            assert all("injected" in error for error in bad)
            assert len(bad) >= 2  # and whoever was prefilled in the same step
            assert all(found in expected for found in good)
            assert [tokens(deltas) for deltas in run(engine, GOOD)] == expected
        lanes = engine.stats().lanes
        assert lanes["decode"].restarts == 0
        assert lanes["prefill"].restarts >= 6
        assert_nothing_left(engine)


def test_a_dead_thread_leaves_nothing_in_the_blocks(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = llm._core.runner

    def deadly(plan: StepPlan) -> StepResult:
        for layer in runner._kv.layers:
            for tensor in layer:
                for work in plan.works:
                    tensor[work.block_ids[0]] = float("nan")
        raise SystemExit("injected")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "execute", deadly)
        assert run(llm, [(1, 2, 3, 4)])[0][-1].finish_reason == "error"
    assert not any(tensor.isnan().any() for layer in runner._kv.layers for tensor in layer)


@pytest.fixture
def llm_that_dies(tiny_llama: Path) -> Iterator[LLM]:
    with small_llm(tiny_llama) as engine:
        yield engine


def test_the_python_api_raises_for_a_failed_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(works: Sequence[Work], *rest: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "build_batch", failing)
        with pytest.raises(BraidError, match="injected"):
            llm.generate("Hello", PARAMS)
    assert len(llm.generate("Hello", PARAMS)[0].token_ids) == 12
