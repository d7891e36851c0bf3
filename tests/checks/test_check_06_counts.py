"""Check 6: lists and objects with more entries than their bounds, on every route that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from braid.core.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_N
from braid.server.config import ServerConfig
from braid.server.dialects.embeddings import MAX_INPUTS
from braid.server.dialects.schemas import MAX_METADATA, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS
from braid.server.dialects.structured import MAX_CHOICES
from braid.server.dialects.tools import MAX_TOOLS

from ..server.conftest import VOCAB
from .bodies import TALK, VALID, assert_refused, concrete
from .served import scripted

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, EMBED = "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"
OPENAI = (CHAT, TEXT, RESPONSES)
GENERATING = (*OPENAI, MESSAGES)
LIMITS = ServerConfig()
SCHEMA_BYTES = 256 << 10


def _tool(index: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{index}"}}


def _flat_tool(index: int) -> dict[str, Any]:
    return {"type": "function", "name": f"f{index}"}


def _messages_tool(index: int) -> dict[str, Any]:
    return {"name": f"f{index}", "input_schema": {"type": "object"}}


class Bound:
    """``make(count)`` fills ``field``; ``most`` entries are taken, one more is not."""

    def __init__(
        self, paths: tuple[str, ...], field: str, most: int, make: Callable[[int], Any], **more: Any
    ) -> None:
        self.paths, self.field, self.most, self.make, self.more = paths, field, most, make, more

    def body(self, path: str, count: int) -> dict[str, Any]:
        return {**VALID[path], **self.more, self.field: self.make(count)}


BOUNDS = {
    "n": Bound((CHAT, TEXT), "n", MAX_N, lambda count: count),
    "top_logprobs": Bound((CHAT,), "top_logprobs", MAX_LOGPROBS, lambda count: count, logprobs=True),
    "top_logprobs of responses": Bound((RESPONSES,), "top_logprobs", MAX_LOGPROBS, lambda count: count),
    "logprobs": Bound((TEXT,), "logprobs", MAX_LOGPROBS, lambda count: count),
    "prompt_logprobs": Bound((CHAT, TEXT), "prompt_logprobs", MAX_LOGPROBS, lambda count: count),
    "stop": Bound(OPENAI, "stop", LIMITS.max_stop, lambda count: [f"s{index}" for index in range(count)]),
    "a stop string": Bound(OPENAI, "stop", MAX_STOP_CHARS, lambda count: ["s" * count]),
    "stop_sequences": Bound((MESSAGES,), "stop_sequences", 16, lambda count: [f"s{index}" for index in range(count)]),
    "a stop sequence": Bound((MESSAGES,), "stop_sequences", MAX_STOP_CHARS, lambda count: ["s" * count]),
    "stop_token_ids": Bound(GENERATING, "stop_token_ids", MAX_STOP_TOKEN_IDS, lambda count: [1] * count),
    "tools": Bound((CHAT, "/tokenize"), "tools", MAX_TOOLS, lambda count: [_tool(index) for index in range(count)],
                   messages=TALK, prompt=None),
    "flat tools": Bound((RESPONSES,), "tools", MAX_TOOLS, lambda count: [_flat_tool(index) for index in range(count)]),
    "tools of messages": Bound((MESSAGES, COUNT), "tools", MAX_TOOLS,
                               lambda count: [_messages_tool(index) for index in range(count)]),
    "functions": Bound((CHAT,), "functions", MAX_TOOLS, lambda count: [{"name": f"f{at}"} for at in range(count)]),
    "metadata": Bound(OPENAI, "metadata", MAX_METADATA, lambda count: {f"k{index}": "v" for index in range(count)}),
    "a metadata value": Bound(OPENAI, "metadata", 512, lambda count: {"k": "v" * count}),
    "a metadata key": Bound(OPENAI, "metadata", 64, lambda count: {"k" * count: "v"}),
    "safety_identifier": Bound(OPENAI, "safety_identifier", 128, lambda count: "s" * count),
    "cache_salt": Bound((*GENERATING, EMBED), "cache_salt", 256, lambda count: "s" * count),
    "prompts": Bound((TEXT,), "prompt", LIMITS.max_prompts, lambda count: ["a"] * count),
    "inputs": Bound((EMBED,), "input", MAX_INPUTS, lambda count: ["a"] * count),
    "choices": Bound(GENERATING, "guided_choice", MAX_CHOICES, lambda count: [f"c{index}" for index in range(count)]),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
async def test_a_bound_is_taken_and_one_more_is_not(name: str) -> None:
    bound = BOUNDS[name]
    async with scripted(reply="ok") as served:
        for path in bound.paths:
            answer = await served.client.post(concrete(path), json=bound.body(path, bound.most))
            assert answer.status_code == 200, (path, answer.text)
            asked = len(served.engine.seen)
            for count in (bound.most + 1, 10 * bound.most):
                answer = await served.client.post(concrete(path), json=bound.body(path, count))
                assert_refused(answer, path)
            assert len(served.engine.seen) == asked


async def test_logit_bias_and_outputs() -> None:
    """More biases than the vocabulary has ids, and outputs that are only together too many."""
    async with scripted(reply="ok") as served:
        for path in OPENAI:
            bias = {str(token): 1 for token in range(MAX_LOGIT_BIAS + 1)}
            answer = await served.client.post(path, json={**VALID[path], "logit_bias": bias})
            assert_refused(answer, path)
            assert str(MAX_LOGIT_BIAS) in answer.json()["error"]["message"]
            fine = {str(token): 1 for token in range(VOCAB)}
            assert (
                await served.client.post(path, json={**VALID[path], "logit_bias": fine})
            ).status_code == 200
            for wrong in (-100.5, 101, 1e308):
                answer = await served.client.post(path, json={**VALID[path], "logit_bias": {"5": wrong}})
                assert_refused(answer, path)
        most = LIMITS.max_sequences
        body = {"prompt": ["a"] * (most // 16 + 1), "n": 16, "max_tokens": 1}
        assert_refused(await served.client.post(TEXT, json=body), TEXT)


async def test_messages() -> None:
    async with scripted(reply="ok") as served:
        many = [{"role": "user", "content": ""}] * (LIMITS.max_messages + 1)
        for path, field in (
            (CHAT, "messages"),
            (MESSAGES, "messages"),
            (COUNT, "messages"),
            (RESPONSES, "input"),
        ):
            answer = await served.client.post(path, json={**VALID[path], field: many})
            assert_refused(answer, path)
        assert not served.engine.seen


@pytest.mark.parametrize("path", GENERATING)
async def test_sources_of_constraints(path: str) -> None:
    """Bytes, not characters; and one byte below the bound is a matter of the grammar alone."""
    async with scripted(reply="ok") as served:
        for field, source in (
            ("guided_regex", "a" * SCHEMA_BYTES + "a"),
            ("guided_regex", "é" * (SCHEMA_BYTES // 2 + 1)),
            ("guided_grammar", 'start: "a"' + " " * SCHEMA_BYTES),
            ("guided_json", {"enum": ["x" * SCHEMA_BYTES]}),
            ("structured_outputs", {"regex": "a" * SCHEMA_BYTES + "a"}),
        ):
            answer = await served.client.post(path, json={**VALID[path], field: source})
            assert_refused(answer, path)
        assert not served.engine.seen
