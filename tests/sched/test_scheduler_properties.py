"""Any load, any order of arrivals, aborts and errors: nothing is lost, everyone ends, and the rules of a plan hold."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.request import FinishReason
from braid.core.step import StepPlan

BLOCK_SIZE = 4
LAST_ARRIVAL = 25


class Load(NamedTuple):
    """One request, which arrives before step ``at``; twins may have equal prompts.

    ``fate`` is how it may end early, after ``patience`` more steps.
    """

    at: int
    prefix: int
    own: int
    twin: bool
    max_tokens: int
    priority: int
    salt: str
    fate: str
    patience: int


loads = st.builds(
    Load,
    at=st.integers(0, LAST_ARRIVAL),
    prefix=st.sampled_from([0, 4, 11, 20, 20]),
    own=st.integers(1, 16),
    twin=st.booleans(),
    max_tokens=st.integers(1, 10),
    priority=st.integers(-1, 1),
    salt=st.sampled_from(["", "", "x"]),
    fate=st.sampled_from(["ends", "ends", "ends", "abort", "abort in flight", "error"]),
    patience=st.integers(0, 8),
)
configs = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(10, 24),
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.integers(5, 24),
        "watermark": st.sampled_from([0.0, 0.1, 0.5]),
    }
)


def check_plan(plan: StepPlan, crank, budget: int) -> None:
    kinds = [work.is_decode for work in plan.works]
    assert kinds == sorted(kinds, reverse=True), "decodes come first"
    assert 1 <= plan.num_scheduled_tokens <= budget
    ids = [work.request_id for work in plan.works]
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(plan.preempted)
    written: set[int] = set()
    for work in plan.works:
        assert work.token_ids
        end = work.start + len(work.token_ids)
        assert len(work.block_ids) * BLOCK_SIZE >= end
        history = crank.requests[work.request_id].token_ids
        assert list(work.token_ids) == history[work.start : end]
        assert (work.sample is not None) == (end == len(history))
        touched = set(work.block_ids[work.start // BLOCK_SIZE : -(-end // BLOCK_SIZE)])
        assert not touched & written, "two requests write the same block"
        written |= touched
    for work in plan.works:
        read_only = set(work.block_ids[: work.start // BLOCK_SIZE])
        assert not read_only & written, "a block is read while another request writes it"


def name_of(index: int) -> str:
    return f"r{index}"


def token_of(crank, request_id: str) -> int:
    """What is sampled depends on the request's history alone, as it does with a real model."""
    history = crank.requests[request_id].token_ids
    return (sum(history) * 31 + len(history)) % 97


def arrive(crank, step: int, plan_of: list[Load]) -> None:
    for index, load in enumerate(plan_of):
        if load.at == step:
            prompt = [*range(load.prefix), *([99 if load.twin else 100 + index] * load.own)]
            request = crank.add(
                name_of(index),
                prompt,
                max_tokens=load.max_tokens,
                priority=load.priority,
                cache_salt=load.salt,
            )
            crank.requests[request.request_id] = request


def due(crank, step: int, plan_of: list[Load], fate: str) -> list[str]:
    names = [
        name_of(i) for i, load in enumerate(plan_of) if load.fate == fate and step >= load.at + load.patience
    ]
    return [name for name in names if not crank.requests[name].is_finished]


def crank_through(make_crank, config: dict, plan_of: list[Load]):
    crank = make_crank(max_model_len=40, block_size=BLOCK_SIZE, **config)
    crank.requests = {}
    for step in range(2000):
        arrive(crank, step, plan_of)
        for name in due(crank, step, plan_of, "abort"):
            assert crank.scheduler.abort(name, crank.now)
        plan = crank.plan()
        if plan is None:
            assert not crank.scheduler.has_unfinished, f"stall:\n{crank.scheduler.dump()}"
            if step > LAST_ARRIVAL:
                return crank
            continue
        check_plan(plan, crank, config["max_num_batched_tokens"])
        for name in due(crank, step, plan_of, "abort in flight"):
            assert crank.scheduler.abort(name, crank.now)
            crank.scheduler.check_integrity()
        planned = {work.request_id for work in plan.works}
        errors = {name: "broken" for name in due(crank, step, plan_of, "error") if name in planned}
        crank.finish(plan, errors=errors, token=lambda name: token_of(crank, name))
    raise AssertionError(f"not done after 2000 steps:\n{crank.scheduler.dump()}")


@settings(max_examples=120, deadline=None)
@given(config=configs, plan_of=st.lists(loads, min_size=1, max_size=9))
def test_everyone_ends_and_every_block_returns(make_crank_fn, config, plan_of) -> None:
    crank = crank_through(make_crank_fn, config, plan_of)
    stats = crank.scheduler.stats()
    assert stats.num_free_blocks == config["num_blocks"]
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    for index, load in enumerate(plan_of):
        request = crank.requests[name_of(index)]
        assert request.is_finished
        if load.fate == "ends":
            assert request.finish_reason is FinishReason.LENGTH
            assert request.num_output_tokens == min(load.max_tokens, 40 - request.num_prompt_tokens)
            assert crank.output(request.request_id) == request.token_ids[request.num_prompt_tokens :]


@settings(max_examples=40, deadline=None)
@given(config=configs, plan_of=st.lists(loads, min_size=1, max_size=6))
def test_equal_loads_give_equal_schedules(make_crank_fn, config, plan_of) -> None:
    first, second = (crank_through(make_crank_fn, config, plan_of) for _ in range(2))
    assert first.deltas == second.deltas
    assert first.scheduler.stats() == second.scheduler.stats()
