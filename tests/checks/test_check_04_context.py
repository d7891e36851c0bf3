"""Check 4: what does not fit into the context is refused with both numbers, and never cut."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ..server.conftest import CONTEXT
from .bodies import LIMITS, VALID, assert_refused, concrete
from .served import scripted

PROMPT_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/messages": "messages",
    "/v1/embeddings": "input",
}

CAPPED = "/v1/messages"
"""Anthropic's ``max_tokens`` is a ceiling, which clients set far beyond any context: the output says why it ended."""


def body_of(path: str, text: str, **more: Any) -> dict[str, Any]:
    field = PROMPT_FIELDS[path]
    value = [{"role": "user", "content": text}] if field == "messages" else text
    return {**VALID[path], field: value, **more}


@pytest.mark.parametrize("path", PROMPT_FIELDS)
async def test_too_long_a_prompt_is_refused_with_both_numbers(path: str) -> None:
    async with scripted() as served:
        for length in (CONTEXT + 1, 10 * CONTEXT, 3_000_000):
            answer = await served.client.post(concrete(path), json=body_of(path, "x" * length))
            assert_refused(answer, path)
            error = answer.json()["error"]
            numbers = [int(number) for number in re.findall(r"\d+", error["message"])]
            assert CONTEXT in numbers
            assert any(number > CONTEXT for number in numbers), error
            if path != "/v1/messages":
                assert error["code"] == "context_length_exceeded"
        assert not served.engine.seen


@pytest.mark.parametrize("path", [path for path in LIMITS if path != CAPPED])
async def test_prompt_and_output_together_must_fit(path: str) -> None:
    async with scripted(reply="ok") as served:
        for wanted in (CONTEXT, CONTEXT - 5, 2**31, 2**62):
            answer = await served.client.post(
                concrete(path), json=body_of(path, "hi there", **{LIMITS[path]: wanted})
            )
            assert_refused(answer, path)
            assert str(CONTEXT) in answer.json()["error"]["message"]
            assert str(wanted) in answer.json()["error"]["message"]
        assert not served.engine.seen


async def test_where_the_limit_is_a_ceiling_the_answer_says_that_the_context_ended_it() -> None:
    async with scripted(reply="o" * 2 * CONTEXT) as served:
        for wanted in (CONTEXT, 32_000, 2**62):
            answer = await served.client.post(CAPPED, json=body_of(CAPPED, "hi there", max_tokens=wanted))
            assert answer.status_code == 200
            assert answer.json()["stop_reason"] == "model_context_window_exceeded"
            (request,) = served.engine.seen[-1:]
            assert len(request.prompt_token_ids) + request.params.max_tokens == CONTEXT


@pytest.mark.parametrize("path", PROMPT_FIELDS)
async def test_whatever_is_taken_reaches_the_engine_whole(path: str) -> None:
    """The longest prompt that fits, one token at a time: the engine sees all of it, or nothing."""
    async with scripted(reply="o") as served:
        engine, taken = served.engine, 0
        for length in range(CONTEXT - 70, CONTEXT + 3):
            engine.seen.clear()
            more = {LIMITS[path]: 1} if path in LIMITS else {}
            text = "".join(chr(ord("a") + at % 26) for at in range(length))
            answer = await served.client.post(concrete(path), json=body_of(path, text, **more))
            if answer.status_code == 200:
                taken = length
                (request,) = engine.seen
                assert text in engine.decode(list(request.prompt_token_ids))
            else:
                assert_refused(answer, path)
                assert not engine.seen
        assert CONTEXT - 70 < taken <= CONTEXT
