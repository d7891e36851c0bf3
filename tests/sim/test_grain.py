from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.step import Work
from braid.policy.cost import Estimate
from braid.sim.gpus import gpu_named
from braid.sim.grain import Grained, units
from braid.sim.roofline import Roofline
from braid.sim.sizes import model_named

COST = Roofline(gpu_named("a100-80g"), model_named("llama-3.1-8b"))


def work(tokens: int, start: int) -> Work:
    return Work("r", range(tokens), start, (), None)


class Recorder:
    """One second per step; keeps (tokens, start) of every work."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[int, int]]] = []

    def step(self, works: Iterable[Work]) -> Estimate:
        self.steps.append([(len(work.token_ids), work.start) for work in works])
        return Estimate(1.0)


@given(st.lists(st.integers(0, 10_000), min_size=2), st.integers(1, 64))
def test_units_rise_and_lose_less_than_half_of_one(lengths: list[int], grain: int) -> None:
    found = [units(tokens, grain) for tokens in sorted(lengths)]
    assert all(a <= b for a, b in pairwise(found))
    assert all(abs(u * grain - n) <= grain / 2 for u, n in zip(found, sorted(lengths), strict=True))


def test_a_grain_of_one_is_the_cost_itself() -> None:
    works = [work(1, 70), work(300, 0)]
    assert Grained(COST, 1, 512).step(works) == COST.step(works)


def test_decodes_alone_are_as_many_steps_as_the_grain() -> None:
    recorder = Recorder()
    assert Grained(recorder, 8, 512).step([work(1, 10), work(1, 20)]).seconds == 8.0
    assert recorder.steps == [[(1, 84), (1, 164)]]


def test_chunks_alone_are_as_many_steps_as_they_need() -> None:
    recorder = Recorder()
    # 100 units are 800 tokens, two steps of at most 512; the middle one of two halves begins at 200.
    assert Grained(recorder, 8, 512).step([work(100, 0)]).seconds == 2.0
    assert recorder.steps == [[(400, 200)]]


def test_mixed_steps_hold_chunks_as_long_as_there_are_some() -> None:
    recorder = Recorder()
    assert Grained(recorder, 8, 512).step([work(1, 10), work(100, 0)]).seconds == 8.0
    assert recorder.steps == [[(1, 84), (400, 200)], [(1, 84)]]


@pytest.mark.parametrize("grain", [2, 8, 32])
@pytest.mark.parametrize("context", [0, 4096, 65_536])
def test_it_takes_as_long_as_the_steps_that_it_stands_for(grain: int, context: int) -> None:
    contexts = [1024 * (1 + number) for number in range(8)]
    chunk = 512
    exact = sum(
        COST.step([*(work(1, c + k) for c in contexts), work(chunk, context + k * chunk)]).seconds
        for k in range(grain)
    )
    grained = Grained(COST, grain, chunk + len(contexts)).step(
        [*(work(1, c // grain) for c in contexts), work(chunk, context // grain)]
    )
    assert grained.seconds == pytest.approx(exact, rel=0.005)
