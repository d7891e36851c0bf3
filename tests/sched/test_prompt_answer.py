"""What is asked of a prompt, chunk by chunk. Blocks hold 4 tokens; a step computes at most 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.request import FinishReason, Request, TokenLogprobs
from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, StepPlan, StepResult


def pooling_request(name: str, prompt: list[int], pooling: str) -> Request:
    params = SamplingParams()
    return Request(request_id=name, prompt_token_ids=tuple(prompt), params=params, pooling=pooling)


def answer(crank: Any, plan: StepPlan) -> list[Any]:
    """Weigh every token as the negative of its id; pool token ids as if they were hidden states."""
    crank.now += 1.0
    scores = {
        work.request_id: [TokenLogprobs(token, -float(token), 1, ()) for token in work.score.token_ids]
        for work in plan.works
        if work.score is not None
    }
    pooled = {
        work.request_id: [3.0, float(sum(work.token_ids))] for work in plan.works if work.pooling is not None
    }
    tokens = {work.request_id: SampledToken(7) for work in plan.works if work.sample is not None}
    result = StepResult(plan.step_id, plan.lane, 0.0, 1.0, tokens, {}, scores=scores, pooled=pooled)
    deltas: list[Any] = crank.scheduler.update(result, crank.now)
    crank.scheduler.check_integrity()
    return deltas


def test_each_chunk_weighs_the_tokens_after_its_own(crank) -> None:
    crank.add("a", range(20), max_tokens=0, prompt_logprobs=2)
    plan = crank.plan()
    work = plan.works[0]
    assert (len(work.token_ids), list(work.score.token_ids), work.score.num_top) == (
        16,
        list(range(1, 17)),
        2,
    )
    assert answer(crank, plan) == []
    plan = crank.plan()
    assert list(plan.works[0].score.token_ids) == [17, 18, 19]
    assert plan.works[0].sample is None
    (delta,) = answer(crank, plan)
    assert delta.finish_reason is FinishReason.LENGTH
    assert delta.prompt_logprobs[0] is None
    assert [entry.token_id for entry in delta.prompt_logprobs[1:]] == list(range(1, 20))
    assert (delta.times.queued, delta.times.prefill, delta.times.decode) == (0.0, 2.0, None)
    assert crank.plan() is None


def test_no_prefix_is_shared_in_and_none_is_waited_for(crank) -> None:
    crank.add("first", range(12), max_tokens=1)
    crank.run()
    crank.add("filler", range(50, 62), max_tokens=1)
    plain = crank.add("scored", [*range(12), 1], max_tokens=0, prompt_logprobs=0)
    plan = crank.plan()
    assert [(work.request_id, work.start) for work in plan.works] == [("filler", 0), ("scored", 0)]
    crank.scheduler.abort("filler", crank.now)
    crank.scheduler.abort("scored", crank.now)
    crank.finish(plan)
    assert plain.num_cached_tokens == 0
    assert crank.scheduler.stats().prefix_queries == 24, "what may not hit does not count as a query"


def test_a_preempted_request_is_weighed_again(make_crank) -> None:
    crank = make_crank(num_blocks=10, max_num_batched_tokens=5)
    crank.add("a", 15, max_tokens=8)
    scored = crank.add("b", range(24), max_tokens=0, prompt_logprobs=0)
    deltas = []
    while (plan := crank.plan()) is not None:
        deltas += answer(crank, plan)
    assert scored.num_preemptions == 1
    (delta,) = [delta for delta in deltas if delta.request_id == "b"]
    assert [entry.token_id for entry in delta.prompt_logprobs[1:]] == list(range(1, 24))
    assert delta.times.num_preemptions == 1


@pytest.mark.parametrize(("pooling", "chunks"), [("last", [None, "last"]), ("mean", ["mean", "mean"])])
def test_pooling_collects_over_chunks(crank, pooling: str, chunks: list[str | None]) -> None:
    crank.scheduler.add(pooling_request("a", list(range(20)), pooling), 0.0)
    plan = crank.plan()
    assert plan.works[0].pooling == chunks[0]
    assert answer(crank, plan) == []
    plan = crank.plan()
    assert (plan.works[0].pooling, plan.works[0].sample) == (chunks[1], None)
    (delta,) = answer(crank, plan)
    assert delta.finish_reason is FinishReason.STOP
    vector = (3.0, 16 + 17 + 18 + 19) if pooling == "last" else (6.0, sum(range(20)))
    norm = (vector[0] ** 2 + vector[1] ** 2) ** 0.5
    assert delta.embedding == pytest.approx([value / norm for value in vector])
    assert delta.token_ids == ()
    assert crank.scheduler.stats().generation_tokens == 0
