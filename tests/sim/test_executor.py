from __future__ import annotations

from collections.abc import Iterable

import pytest

from braid.core.sampling import SamplingParams
from braid.core.step import Layers, SampleSpec, StepPlan, Work
from braid.policy.cost import Estimate
from braid.sim.executor import FixedTime, SimExecutor, SimulationEndError, pseudo_token

SPEC = SampleSpec(SamplingParams(), 3, [1, 2], 2)


def plan(step_id: int = 0) -> StepPlan:
    return StepPlan(step_id, "mixed", (Work("a", [1, 2], 0, [0], SPEC), Work("b", [1], 0, [1], None)))


def test_a_step_takes_its_predicted_time() -> None:
    executor = SimExecutor(FixedTime(2.5))
    executor.submit(plan())
    (result,) = executor.wait(None)
    assert (result.start, result.duration, executor.now()) == (0.0, 2.5, 2.5)
    assert list(result.tokens) == ["a"], "an unfinished prompt has no token"
    assert result.tokens["a"].token_id == pseudo_token(SPEC)


@pytest.mark.parametrize("with_decode", [False, True])
def test_layers_take_their_share(with_decode: bool) -> None:
    """A step of their own beside that of the decodes, and logits after the last only."""

    class Tokens:
        def step(self, works: Iterable[Work]) -> Estimate:
            return Estimate(sum(len(work.token_ids) + 0.5 * (work.sample is not None) for work in works))

    executor = SimExecutor(Tokens())
    decode = (Work("a", [1], 4, [0, 1], SPEC),) if with_decode else ()
    chunk = Work("b", range(8), 0, [2, 3], None)
    found = []
    for first, end, sample in ((0, 1, None), (1, 4, SPEC)):
        part = chunk._replace(layers=Layers(first, end, 4), sample=sample)
        executor.submit(StepPlan(first, "mixed", (*decode, part)))
        found.append(executor.wait(None)[0].duration)
    assert found == [8 / 4 + 1.5 * with_decode, 8 * 3 / 4 + 0.5 + 1.5 * with_decode]


def test_deadlines_and_wakes_end_a_wait_early() -> None:
    executor = SimExecutor(FixedTime(2.0))
    executor.submit(plan())
    assert executor.wait(1.5) == []
    assert executor.now() == 1.5
    executor.wake()
    assert executor.wait(None) == []
    assert executor.now() == 1.5
    assert len(executor.wait(None)) == 1
    assert executor.wait(1.0) == []
    assert executor.now() == 2.0, "time never runs backwards"


def test_events_come_in_the_order_of_time_then_steps_then_posting() -> None:
    executor = SimExecutor(FixedTime(1.0))
    seen: list[str] = []
    for name in ("second", "third"):
        executor.at(1.0, lambda name=name: seen.append(name))
    executor.submit(plan())
    assert len(executor.wait(None)) == 1
    while executor.has_events:
        assert executor.wait(None) == []
    assert seen == ["second", "third"]


def test_waiting_for_nothing_is_an_error() -> None:
    executor = SimExecutor(FixedTime())
    with pytest.raises(SimulationEndError):
        executor.wait(None)
    executor.wait(4.0)
    with pytest.raises(ValueError, match="at least now"):
        executor.at(3.0, lambda: None)


def test_extrapolated_steps_are_counted() -> None:
    class Unsure:
        def step(self, works: object) -> Estimate:
            return Estimate(1.0, extrapolated=True)

    executor = SimExecutor(Unsure())
    executor.submit(plan())
    assert executor.num_extrapolated == 1
