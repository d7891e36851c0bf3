"""What the scheduler decides, case by case. Blocks hold 4 tokens; a step computes at most 16."""

from __future__ import annotations

from dataclasses import fields

import pytest

from braid.core.errors import CapacityError, InvalidParameterError, OverloadedError
from braid.core.request import FinishReason, Status
from braid.core.step import StepPlan
from braid.sched.config import SchedulerConfig
from braid.sched.scheduler import SchedulerStats


def sizes(plan: StepPlan | None) -> list[tuple[str, int, int]]:
    assert plan is not None
    return [(work.request_id, work.start, len(work.token_ids)) for work in plan.works]


def test_a_request_is_prefilled_then_decoded(crank) -> None:
    request = crank.add("a", 6, max_tokens=3)
    assert [crank.step() for _ in range(4)] == [[("a", 0, 6)], [("a", 6, 1)], [("a", 7, 1)], []]
    assert crank.output("a") == [7, 7, 7]
    assert crank.deltas[-1].finish_reason is FinishReason.LENGTH
    assert (request.status, request.finish_reason) == (Status.FINISHED, FinishReason.LENGTH)
    times = (request.first_scheduled_time, request.first_token_time, request.last_token_time)
    assert times == (0.0, 1.0, 3.0)
    assert request.finish_time == 3.0
    assert crank.scheduler.stats().num_free_blocks == 16


def test_works_show_the_history_and_cover_their_blocks(crank) -> None:
    crank.add("a", [1, 2, 3, 4, 5], max_tokens=2, seed=9)
    plan = crank.plan()
    work = plan.works[0]
    assert list(work.token_ids) == [1, 2, 3, 4, 5]
    assert len(work.block_ids) == 2
    assert (work.sample.seed, list(work.sample.token_ids), work.sample.num_prompt_tokens) == (
        9,
        [1, 2, 3, 4, 5],
        5,
    )
    crank.finish(plan)
    work = crank.plan().works[0]
    assert (list(work.token_ids), work.start, list(work.sample.token_ids)) == ([7], 5, [1, 2, 3, 4, 5, 7])


def test_decodes_go_first_and_prefill_takes_the_rest(crank) -> None:
    crank.add("a", 4, max_tokens=8)
    crank.step()
    crank.add("b", 20)
    crank.add("c", 6)
    assert crank.step() == [("a", 4, 1), ("b", 0, 15)]
    assert crank.step() == [("a", 5, 1), ("b", 15, 5), ("c", 0, 6)]
    assert crank.step() == [("a", 6, 1), ("b", 20, 1), ("c", 6, 1)]


def test_an_unfinished_prompt_samples_nothing(crank) -> None:
    crank.add("a", 20)
    plan = crank.plan()
    assert plan.works[0].sample is None
    assert crank.finish(plan) == []


def test_one_token_chunks_stand_among_the_decodes(make_crank) -> None:
    crank = make_crank(max_num_batched_tokens=5)
    crank.add("a", 9)
    crank.add("b", 1)
    crank.add("c", 4)
    assert sizes(crank.plan()) == [("a", 0, 5)]
    crank = make_crank(max_num_batched_tokens=8)
    crank.add("a", 9)
    crank.add("b", 8)
    crank.step()
    plan = crank.plan()
    assert sizes(plan) == [("a", 8, 1), ("b", 0, 7)]
    crank.finish(plan)
    crank.add("c", 6)
    plan = crank.plan()
    assert [work.is_decode for work in plan.works] == [True, True, False]


def test_first_come_first_served_by_priority_then_arrival(make_crank) -> None:
    crank = make_crank(max_num_seqs=1)
    crank.add("late", 4, max_tokens=1, arrival_time=2.0)
    crank.add("early", 4, max_tokens=1, arrival_time=1.0)
    crank.add("urgent", 4, max_tokens=1, arrival_time=3.0, priority=-1)
    assert [crank.step()[0][0] for _ in range(3)] == ["urgent", "early", "late"]


def test_seats_and_the_watermark_bound_admission(make_crank) -> None:
    crank = make_crank(num_blocks=10, watermark=0.2)
    for name in "abc":
        crank.add(name, 16, max_tokens=1)
    assert crank.step() == [("a", 0, 16)], "the first may take anything"
    assert crank.step() == [("b", 0, 16)]
    crank = make_crank(num_blocks=10, watermark=0.2, max_num_batched_tokens=40)
    for name in "abc":
        crank.add(name, 15, max_tokens=2)
    assert [work[0] for work in crank.step()] == ["a", "b"], "c would leave fewer than 2 blocks"
    assert crank.scheduler.stats().num_waiting == 1


def test_the_cache_gives_all_but_the_last_token(crank) -> None:
    prompt = list(range(8))
    crank.add("a", prompt, max_tokens=1)
    crank.run()
    whole = crank.add("b", prompt, max_tokens=1)
    assert crank.step() == [("b", 4, 4)]
    longer = crank.add("c", [*prompt, 9, 9], max_tokens=1)
    assert crank.step() == [("c", 8, 2)]
    assert (whole.num_cached_tokens, longer.num_cached_tokens) == (4, 8)
    assert [delta.num_cached_tokens for delta in crank.deltas] == [0, 4, 8]
    stats = crank.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens) == (26, 12, 26)


def test_outputs_are_cached_too(crank) -> None:
    crank.add("a", [1, 2, 3], max_tokens=6)
    crank.run()
    crank.add("b", [1, 2, 3, *crank.output("a"), 5], max_tokens=1)
    assert crank.step() == [("b", 8, 2)]


def test_salts_keep_tenants_apart(crank) -> None:
    crank.add("a", list(range(8)), max_tokens=1, cache_salt="x")
    crank.run()
    crank.add("b", list(range(8)), max_tokens=1, cache_salt="y")
    assert crank.step() == [("b", 0, 8)]


def test_who_shares_a_prefix_being_filled_waits_for_it(crank) -> None:
    prompt = list(range(24))
    crank.add("a", prompt, max_tokens=2)
    crank.add("b", [*prompt[:20], 99], max_tokens=2)
    crank.add("c", 3, max_tokens=2)
    assert crank.step() == [("a", 0, 16)], "b waits although it could have been tried"
    assert crank.step() == [("a", 16, 8), ("c", 0, 3)], "others pass"
    assert crank.step() == [("a", 24, 1), ("c", 3, 1), ("b", 20, 1)]
    assert crank.scheduler.stats().prefix_hits == 20
    crank.run()


@pytest.mark.parametrize("end", ["abort", "error"])
def test_waiters_do_not_outlive_their_filler(crank, end: str) -> None:
    prompt = list(range(24))
    crank.add("a", prompt)
    waiter = crank.add("b", [*prompt, 99], max_tokens=1)
    plan = crank.plan()
    if end == "abort":
        crank.scheduler.abort("a", crank.now)
        crank.finish(plan)
    else:
        crank.finish(plan, errors={"a": "boom"})
    assert crank.step() == [("b", 0, 16)]
    crank.run()
    assert waiter.finish_reason is FinishReason.LENGTH


def test_the_more_urgent_does_not_wait_for_the_less_urgent(crank) -> None:
    prompt = list(range(24))
    crank.add("a", prompt, priority=5)
    crank.step()
    crank.add("b", [*prompt, 99], priority=0)
    assert crank.step() == [("a", 16, 8), ("b", 16, 8)]


def test_the_last_gives_way_when_blocks_run_out(make_crank) -> None:
    crank = make_crank(num_blocks=6, max_model_len=20, max_num_seqs=2)
    crank.add("a", 8, max_tokens=12)
    loser = crank.add("b", 8, max_tokens=6)
    crank.step()
    plans = []
    while not (plans and plans[-1].preempted):
        plans.append(crank.plan())
        crank.finish(plans[-1])
    assert plans[-1].preempted == ("b",)
    assert loser.status is Status.PREEMPTED
    assert (loser.num_computed_tokens, loser.block_ids, loser.num_preemptions) == (0, [], 1)
    kept = loser.num_output_tokens
    assert kept > 0, "output tokens survive"
    crank.run()
    assert len(crank.output("a")) == 12
    assert len(crank.output("b")) == 6
    assert crank.scheduler.stats().num_preemptions == 1
    assert crank.scheduler.stats().num_free_blocks == 6


def test_a_preempted_request_finds_its_blocks_again(make_crank) -> None:
    crank = make_crank(num_blocks=7, max_model_len=24, max_num_seqs=2)
    crank.add("a", 8, max_tokens=10)
    crank.add("b", 8, max_tokens=10)
    while not (plan := crank.plan()).preempted:
        crank.finish(plan)
    crank.finish(plan)
    crank.scheduler.abort("a", crank.now)
    start = crank.step()[0][1]
    assert start > 0
    assert start % 4 == 0


def test_a_lone_request_may_use_every_block(make_crank) -> None:
    crank = make_crank(num_blocks=5, max_model_len=20, watermark=0.5)
    crank.add("a", 12, max_tokens=8)
    crank.run()
    assert len(crank.output("a")) == 8
    assert crank.scheduler.stats().num_preemptions == 0


def test_abort_in_flight_frees_only_after_the_step(crank) -> None:
    request = crank.add("a", 8)
    plan = crank.plan()
    table = plan.works[0].block_ids
    assert crank.scheduler.abort("a", 0.5)
    assert not crank.scheduler.abort("a", 0.5)
    crank.scheduler.check_integrity()
    assert crank.scheduler.stats().num_free_blocks == 14
    assert len(table) == 2, "what the executor holds is left alone"
    assert not crank.scheduler.has_unfinished
    assert crank.finish(plan) == []
    assert crank.scheduler.stats().num_free_blocks == 16
    assert request.finish_reason is FinishReason.ABORT


def test_an_id_may_return_while_its_aborted_step_is_in_flight(crank) -> None:
    crank.add("a", 8)
    plan = crank.plan()
    crank.scheduler.abort("a", 0.0)
    again = crank.add("a", 6, max_tokens=1)
    assert crank.finish(plan) == []
    assert again.num_computed_tokens == 0
    assert crank.step() == [("a", 0, 6)]


@pytest.mark.parametrize("where", ["waiting", "running"])
def test_abort_elsewhere(make_crank, where: str) -> None:
    crank = make_crank(max_num_seqs=1)
    crank.add("a", 4)
    crank.add("b", 4, max_tokens=1)
    crank.step()
    assert crank.scheduler.abort("a" if where == "running" else "b", crank.now)
    crank.scheduler.check_integrity()
    crank.run()
    assert not crank.scheduler.abort("b", crank.now)


def test_an_error_ends_only_its_request_and_nobody_reads_its_blocks(crank) -> None:
    prompt = list(range(20))
    bad = crank.add("bad", prompt)
    crank.add("good", 4, max_tokens=2)
    crank.step()
    deltas = crank.finish(crank.plan(), errors={"bad": "not a number"})
    assert [(d.request_id, d.finish_reason, d.error) for d in deltas] == [
        ("bad", FinishReason.ERROR, "not a number"),
        ("good", None, None),
    ]
    assert bad.error == "not a number"
    crank.add("next", prompt, max_tokens=1)
    assert ("next", 0, 15) in crank.step(), "nothing of the failed request is reused"
    crank.run()
    assert crank.output("good") == [7, 7]


EOS, STOP = 50, 60


@pytest.mark.parametrize(
    ("tokens", "params", "reason", "stop_reason", "kept"),
    [
        ([1, EOS], {}, FinishReason.STOP, None, 2),
        ([1, EOS, 1, 1], {"ignore_eos": True}, FinishReason.LENGTH, None, 4),
        ([1, STOP], {"stop_token_ids": (STOP,)}, FinishReason.STOP, STOP, 2),
        ([1, EOS], {"stop_token_ids": (EOS,), "ignore_eos": True}, FinishReason.STOP, EOS, 2),
        ([EOS, 1, EOS], {"min_tokens": 2}, FinishReason.STOP, None, 3),
        ([1, 1, 1, EOS], {"min_tokens": 4}, FinishReason.LENGTH, None, 4),
        ([1, 1, 1, EOS], {}, FinishReason.STOP, None, 4),
    ],
)
def test_endings(crank, tokens, params, reason, stop_reason, kept) -> None:
    crank.add("a", 3, max_tokens=4, eos_token_ids=frozenset({EOS}), **params)
    stream = iter(tokens)
    while crank.scheduler.has_unfinished:
        crank.step(token=lambda _: next(stream))
    last = crank.deltas[-1]
    assert (last.finish_reason, last.stop_reason) == (reason, stop_reason)
    assert crank.output("a") == tokens[:kept], "the token that ends the request is part of it"


def test_end_tokens_are_banned_before_min_tokens(crank) -> None:
    crank.add("a", 3, eos_token_ids=frozenset({EOS, 40}), min_tokens=2, stop_token_ids=(STOP,))
    banned = []
    for _ in range(4):
        plan = crank.plan()
        banned.append(plan.works[0].sample.banned_token_ids)
        crank.finish(plan)
    assert banned == [(40, EOS, STOP), (40, EOS, STOP), (), ()]


@pytest.mark.parametrize(("asked", "given"), [(None, 37), (100, 37), (5, 5)])
def test_the_context_caps_max_tokens(crank, asked, given) -> None:
    assert crank.add("a", 3, max_tokens=asked).max_tokens == given


def test_the_whole_context_can_be_used(make_crank) -> None:
    crank = make_crank(num_blocks=10)
    crank.add("a", 3, max_tokens=None)
    crank.run()
    assert len(crank.output("a")) == 37


@pytest.mark.parametrize(
    ("prompt", "code", "text"),
    [(40, "context_length_exceeded", "40 tokens, .* 40 tokens"), (0, None, "empty")],
)
def test_prompts_that_cannot_be_served_are_refused(crank, prompt, code, text) -> None:
    with pytest.raises(InvalidParameterError, match=text) as caught:
        crank.add("a", prompt)
    assert (caught.value.code, caught.value.param) == (code, "prompt")
    assert not crank.scheduler.has_unfinished


def test_a_full_queue_and_a_used_id_refuse(make_crank) -> None:
    crank = make_crank(max_waiting=2)
    crank.add("a", 3)
    with pytest.raises(InvalidParameterError, match="in use"):
        crank.add("a", 3)
    crank.add("b", 3)
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        crank.add("c", 3)
    crank.step()
    crank.add("c", 3)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"num_blocks": 0}, InvalidParameterError),
        ({"watermark": 1.0}, InvalidParameterError),
        ({"max_num_batched_tokens": 3}, InvalidParameterError),
        ({"max_model_len": 1}, InvalidParameterError),
        ({"num_blocks": 9, "max_model_len": 40}, CapacityError),
    ],
)
def test_configs_that_could_not_work_are_refused(wrong, error) -> None:
    good = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 4, "max_model_len": 40}
    SchedulerConfig(**good)
    with pytest.raises(error):
        SchedulerConfig(**(good | wrong))


def test_unknown_lanes_are_refused(crank) -> None:
    with pytest.raises(ValueError, match="unknown lane 'fast'"):
        crank.scheduler.schedule("fast", 0.0)


def test_the_dump_names_every_request(crank) -> None:
    crank.add("a", range(12))
    crank.add("b", range(12))
    crank.plan()
    text = crank.scheduler.dump()
    assert "a: running, 0/12 tokens computed, 3 blocks, lane mixed" in text
    assert "b: waiting" in text
    assert "waits for a block" in text


def test_statistics_are_those_the_engine_publishes() -> None:
    from braid.engine.protocol import EngineStats

    published = tuple(field.name for field in fields(EngineStats))
    assert (*SchedulerStats._fields, "lanes", "experts") == published, (
        "only the executor knows its lanes and experts"
    )
