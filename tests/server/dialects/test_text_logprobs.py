from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.errors import InvalidParameterError
from braid.core.request import TokenLogprobs
from braid.server.decode import Token
from braid.server.dialects.logprobs import LOWEST_LOGPROB
from braid.server.dialects.text_logprobs import (
    TextLogprobs,
    join_lists,
    ranked_entries,
    require_prompt_logprobs,
)
from braid.server.errors import RequestFailedError
from braid.server.prompts import check_prompt_logprobs

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("é😀\u0301 a"), max_size=20)


def entry(token: int, *top: tuple[int, float], logprob: float = -0.5) -> TokenLogprobs:
    return TokenLogprobs(token, logprob, 1, top)


@given(prompt=TEXTS, output=TEXTS)
def test_every_byte_lies_in_the_character_at_its_offset(tokenizer: Any, prompt: str, output: str) -> None:
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(output, add_special_tokens=False)
    made = TextLogprobs(tokenizer, 0, frozenset(), len(prompt))
    lists = made.prompt(before, [None, *map(entry, before[1:])][: len(before)], prompt)
    join_lists(lists, made.output([Token(token, entry(token)) for token in after]))
    text = prompt + output
    assert lists["text_offset"] == sorted(lists["text_offset"])
    for token, offset in zip(before + after, lists["text_offset"], strict=True):
        assert tokenizer.token_bytes(token) in text[offset].encode()


def test_hidden_special_tokens_take_no_room(tokenizer: Any) -> None:
    made = TextLogprobs(tokenizer, 0, frozenset({258}), 3)
    lists = made.output([Token(token, entry(token)) for token in (71, 258, 72)])
    assert lists["text_offset"] == [3, 4, 4]
    shown = TextLogprobs(tokenizer, 0, frozenset(), 0)
    lists = shown.output([Token(token, entry(token)) for token in (71, 258, 72)])
    assert lists["text_offset"] == [0, 1, 1 + len("<|im_end|>")]


def test_alternatives_and_what_json_cannot_say(tokenizer: Any) -> None:
    minus = float("-inf")
    made = TextLogprobs(tokenizer, 1, frozenset(), 0)
    lists = made.output([Token(71, entry(71, (72, minus), (73, -1.0), logprob=minus)), Token(72, None)])
    first, second = tokenizer.token_text(71), tokenizer.token_text(72)
    assert lists["tokens"] == [first]
    assert lists["token_logprobs"] == [LOWEST_LOGPROB]
    assert lists["top_logprobs"] == [{first: LOWEST_LOGPROB, second: LOWEST_LOGPROB}]


def test_the_chosen_token_stands_first_and_once(tokenizer: Any) -> None:
    chosen = TokenLogprobs(71, -2.0, 2, ((72, -0.1), (71, -2.0)))
    (first, second) = ranked_entries(tokenizer, [None, chosen], 2)
    assert first is None
    assert second is not None
    assert list(second) == ["71", "72"]
    assert [value["rank"] for value in second.values()] == [2, 1]


@pytest.mark.parametrize("entries", [None, (), (None, entry(5), entry(6))])
def test_what_the_engine_owes(entries: Any) -> None:
    with pytest.raises(RequestFailedError):
        require_prompt_logprobs(entries, 2)


@pytest.mark.parametrize(("num_tokens", "count", "fine"), [(1 << 19, 1, True), ((1 << 19) + 1, 1, False)])
def test_log_probabilities_of_prompts_are_bounded(num_tokens: int, count: int, fine: bool) -> None:
    if fine:
        check_prompt_logprobs(num_tokens, count)
        return
    with pytest.raises(InvalidParameterError, match="at most 1048576"):
        check_prompt_logprobs(num_tokens, count)
