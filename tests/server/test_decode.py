from __future__ import annotations

from typing import Any

import pytest

from braid.core.errors import EngineDeadError
from braid.core.request import Delta, FinishReason, TokenLogprobs
from braid.core.sampling import SamplingParams
from braid.server.decode import ChoiceDecoder
from braid.server.errors import RequestFailedError


def deltas(tokenizer: Any, text: str, burst: int, *, logprobs: bool) -> list[Delta]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = []
    for start in range(0, len(ids), burst):
        piece = tuple(ids[start : start + burst])
        entries = tuple(TokenLogprobs(token, -0.1, 1, ()) for token in piece) if logprobs else None
        reason = FinishReason.STOP if start + burst >= len(ids) else None
        out.append(Delta("r", piece, entries, 0, reason))
    return out


@pytest.mark.parametrize("burst", range(1, 9))
@pytest.mark.parametrize("stop", [(), ("zzz",), ("é!",), ("b", "ab")])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_no_token_and_no_text_is_lost(
    tokenizer: Any, burst: int, stop: tuple[str, ...], logprobs: int | None
) -> None:
    text = "xé abé! 😀zz"
    decoder = ChoiceDecoder(tokenizer, SamplingParams(stop=stop, logprobs=logprobs), 0)
    shown = []
    for delta in deltas(tokenizer, text, burst, logprobs=logprobs is not None):
        shown.append(decoder.push(delta))
        if decoder.finish_reason is not None:
            break
    got = [choice for choice in shown if choice is not None]
    cuts = [text.find(end) for end in stop if end in text]
    expected = text[: min(cuts)] if cuts else text
    assert "".join(choice.text for choice in got) == expected
    assert got[-1].finish_reason == "stop"
    assert [choice.finish_reason for choice in got[:-1]] == [None] * (len(got) - 1)
    tokens = [token.token_id for choice in got for token in choice.tokens]
    if logprobs is None:
        assert tokens == []
    else:
        assert tokens == tokenizer.encode(text, add_special_tokens=False)[: decoder.num_tokens]


def test_tokens_behind_a_stop_string_do_not_count(tokenizer: Any) -> None:
    decoder = ChoiceDecoder(tokenizer, SamplingParams(stop=("b",)), 0)
    choice = decoder.push(deltas(tokenizer, "abcdef", 100, logprobs=False)[0])
    assert choice is not None
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("a", "stop", "b")
    assert decoder.num_tokens == 2


def test_held_back_text_takes_its_tokens_along(tokenizer: Any) -> None:
    decoder = ChoiceDecoder(tokenizer, SamplingParams(stop=("bx",), logprobs=0), 0)
    got = [decoder.push(delta) for delta in deltas(tokenizer, "abcd", 1, logprobs=True)]
    assert got[0] is not None
    assert (got[0].text, len(got[0].tokens)) == ("a", 1)
    assert got[1] is None
    assert got[2] is not None
    assert (got[2].text, len(got[2].tokens)) == ("bc", 2)


@pytest.mark.parametrize(
    ("reason", "error"), [(FinishReason.ERROR, RequestFailedError), (FinishReason.ABORT, EngineDeadError)]
)
def test_an_engine_that_gives_up_is_an_error(
    tokenizer: Any, reason: FinishReason, error: type[Exception]
) -> None:
    decoder = ChoiceDecoder(tokenizer, SamplingParams(), 0)
    with pytest.raises(error):
        decoder.push(Delta("r", (), None, 0, reason, None, "why"))


def test_the_stop_token_is_told(tokenizer: Any) -> None:
    decoder = ChoiceDecoder(tokenizer, SamplingParams(), 0)
    choice = decoder.push(Delta("r", (258,), None, 4, FinishReason.STOP, 258))
    assert choice is not None
    assert (choice.text, choice.stop_reason) == ("", 258)
    assert decoder.num_cached_tokens == 4
