"""Check 7: ids outside the vocabulary, nothing where a prompt should be, and text that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..server.conftest import VOCAB
from .bodies import JSON, LIMITS, VALID, assert_refused, concrete, know_session
from .served import scripted

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, EMBED = "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"
BAD_IDS = (-1, VOCAB, VOCAB + 1, 2**31, 2**63, 2**64, -(2**63))


@pytest.mark.parametrize("token", BAD_IDS)
async def test_ids_outside_the_vocabulary(token: int) -> None:
    async with scripted(reply="ok") as served:
        for path, field, value in (
            (TEXT, "prompt", [1, token]),
            (TEXT, "prompt", [[1], [2, token]]),
            (EMBED, "input", [1, token]),
            (EMBED, "input", [[1], [token]]),
            ("/detokenize", "tokens", [1, token]),
            *((path, "stop_token_ids", [token]) for path in LIMITS),
            *((path, "logit_bias", {str(token): 1}) for path in (CHAT, TEXT, RESPONSES)),
        ):
            answer = await served.client.post(path, json={**VALID[path], field: value})
            assert_refused(answer, path)
        assert not served.engine.seen


NO_PROMPTS: dict[str, tuple[dict[str, Any], ...]] = {
    CHAT: ({"messages": []}, {"messages": [{}]}, {"messages": [{"role": "user"}]},
           {"messages": [{"role": "user", "content": None}]}, {"messages": [{"content": "x"}]},
           {"messages": [{"role": "user", "content": 3}]}, {"messages": None}, {"messages": "hi"}, {"messages": [[]]}),
    TEXT: ({"prompt": ""}, {"prompt": []}, {"prompt": [""]}, {"prompt": [[]]}, {"prompt": ["a", ""]}, {"prompt": None},
           {"prompt": [1, "a"]}, {"prompt": [["a"]]}, {"prompt": [True]}, {"prompt": {}}, {"prompt": [1.0]}),
    RESPONSES: ({"input": []}, {"input": [{}]}, {"input": None}, {"input": [{"role": "user"}]},
                {"input": [{"type": "function_call"}]}, {"input": [{"role": "user", "content": 3}]}),
    MESSAGES: ({"messages": []}, {"messages": [{}]}, {"messages": [{"role": "user"}]}, {"messages": None},
               {"messages": [{"role": "user", "content": 3}]}, {"messages": [{"role": "user", "content": [{}]}]}),
    EMBED: ({"input": ""}, {"input": []}, {"input": [""]}, {"input": [[]]}, {"input": None}, {"input": {}}),
    "/tokenize": ({"prompt": None}, {"messages": []}, {"prompt": "a", "messages": VALID[CHAT]["messages"]}),
    "/detokenize": ({"tokens": None}, {"tokens": "a"}, {"tokens": [1.5]}, {"tokens": [[1]]}),
}  # fmt: skip
NO_PROMPTS[COUNT] = NO_PROMPTS[MESSAGES]


@pytest.mark.parametrize("path", NO_PROMPTS)
async def test_nothing_where_a_prompt_should_be(path: str) -> None:
    async with scripted(reply="ok") as served:
        for fields in NO_PROMPTS[path]:
            answer = await served.client.post(path, json={**VALID[path], **fields})
            assert_refused(answer, path)
        for missing in [name for name in VALID[path] if name in ("messages", "prompt", "input", "tokens")]:
            body = {name: value for name, value in VALID[path].items() if name != missing}
            assert_refused(await served.client.post(path, json=body), path)
        assert not served.engine.seen


def texts(value: Any, mark: str) -> list[Any]:
    """The value with ``mark`` in place of each of its texts, one at a time, and of each key."""
    if isinstance(value, str):
        return [mark]
    if isinstance(value, list):
        return [
            [*value[:at], new, *value[at + 1 :]]
            for at, entry in enumerate(value)
            for new in texts(entry, mark)
        ]
    if isinstance(value, dict):
        inner = [{**value, key: new} for key, entry in value.items() for new in texts(entry, mark)]
        return [*inner, {**value, mark: 1}]
    return []


@pytest.mark.parametrize("escaped", ["\\ud800", "a\\udfffb", "\\ud83d\\ud83d", "\\ude00\\ud83d"])
async def test_a_lone_surrogate_anywhere(escaped: str) -> None:
    """In any text and any key of any body; a pair of surrogates is a character."""
    async with scripted(reply="ok") as served:
        await know_session(served.client)
        asked = len(served.engine.seen)
        for path, body in VALID.items():
            for changed in texts(body, "MARK"):
                data = json.dumps(changed).replace("MARK", escaped).encode()
                answer = await served.client.post(concrete(path), content=data, headers=JSON)
                assert_refused(answer, path)
        assert len(served.engine.seen) == asked


@pytest.mark.parametrize("text", ["\\ud83d\\ude00", "\\u0000", "\\u202e", "\\uffff", "e\\u0301", "\\ufeff"])
async def test_odd_but_real_characters_are_text(text: str) -> None:
    async with scripted(reply="ok") as served:
        for path, field in (
            (TEXT, "prompt"),
            (RESPONSES, "input"),
            (EMBED, "input"),
            ("/tokenize", "prompt"),
        ):
            data = json.dumps({**VALID[path], field: "MARK"}).replace("MARK", text).encode()
            answer = await served.client.post(path, content=data, headers=JSON)
            assert answer.status_code == 200, (path, answer.text)
        for path in (CHAT, MESSAGES, COUNT):
            data = json.dumps({**VALID[path], "messages": [{"role": "user", "content": "MARK"}]})
            answer = await served.client.post(path, content=data.replace("MARK", text).encode(), headers=JSON)
            assert answer.status_code == 200, (path, answer.text)
        wanted = json.loads(f'"{text}"')
        assert all(wanted in served.engine.decode(list(seen.prompt_token_ids)) for seen in served.engine.seen)
