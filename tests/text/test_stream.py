"""Incremental text equals one-shot text, however the tokens come."""

from __future__ import annotations

import codecs
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.sampling import SamplingParams
from braid.text.stream import StopMatcher, TextStream
from braid.text.tokenizer import Tokenizer


class Letters:
    """Ids below 256 are bytes; the others stand for short strings, 300 is special."""

    special_token_ids = frozenset({300})
    words = ("ab", "ba", "abab", "é", "日本", "a", "b", "😀a")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b"<x>" if id == 300 else self.words[id - 256].encode()


LETTERS = Letters()
BYTES = st.sampled_from([0x61, 0x62, 0xC3, 0xA9, 0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x98, 0x80, 0xFF])
IDS = st.lists(st.one_of(BYTES, st.integers(256, 263), st.just(300)), max_size=30)
STOPS = st.lists(st.text(alphabet="abé日", min_size=1, max_size=4), max_size=3)


def run(ids: list[int], cuts: list[int], params: SamplingParams) -> tuple[str, str | None, int]:
    stream = TextStream(LETTERS, params)
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    deltas = [stream.push(ids[begin:end]) for begin, end in pairwise(edges)]
    text = "".join(delta.text for delta in deltas) + stream.finish()
    assert stream.text == text
    return text, stream.stopped, sum(delta.num_tokens for delta in deltas)


def naive(ids: list[int], params: SamplingParams) -> tuple[str, str | None]:
    """Grow the text token by token and, in it, character by character, and look for stop strings at its end."""
    kept = [id for id in ids if id not in LETTERS.special_token_ids]
    seen = ""
    for count in range(1, len(ids) + 2):
        head = b"".join(LETTERS.token_bytes(id) for id in ids[:count] if id in kept)
        final = count > len(ids)
        now = decided(head, final)
        for end in range(len(seen) + 1, len(now) + 1):
            found = [stop for stop in params.stop if now[:end].endswith(stop)]
            if found and min(count, len(ids)) >= params.min_tokens:
                stop = max(found, key=len)
                return now[: end if params.include_stop_str_in_output else end - len(stop)], stop
        seen = now
    return seen, None


def decided(data: bytes, final: bool) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final)


@given(IDS, st.lists(st.integers(0, 30), max_size=6), STOPS, st.booleans(), st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_every_split_equals_the_naive_reference(
    ids: list[int], cuts: list[int], stops: list[str], include: bool, min_tokens: int
) -> None:
    params = SamplingParams(stop=tuple(stops), include_stop_str_in_output=include, min_tokens=min_tokens)
    text, stopped, consumed = run(ids, cuts, params)
    assert (text, stopped) == naive(ids, params)
    assert consumed == len(ids) or stopped is not None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_byte_level_text_equals_the_library(smollm: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, smollm.vocab_size - 1), max_size=40))
    stream = TextStream(smollm, SamplingParams())
    text = "".join(stream.push([id]).text for id in ids) + stream.finish()
    assert text == smollm.decode(ids) == smollm._backend.decode(ids, skip_special_tokens=True)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=100, deadline=None)
def test_text_survives_a_round_trip(byte_tokenizer: Tokenizer, piece_tokenizer: Tokenizer, text: str) -> None:
    for tokenizer in (byte_tokenizer, piece_tokenizer):
        ids = tokenizer.encode(text, parse_special=False)
        stream = TextStream(tokenizer, SamplingParams(skip_special_tokens=False))
        grown = "".join(stream.push([id]).text for id in ids) + stream.finish()
        assert grown == tokenizer.decode(ids, skip_special_tokens=False, continuation=True)
        begin = "<s>" if tokenizer is piece_tokenizer else ""
        blank = " " if tokenizer is piece_tokenizer and text else ""
        assert grown.replace("▁", " ") == f"{begin}{blank}{text}".replace("▁", " ")


def test_no_partial_character_is_given_out() -> None:
    stream = TextStream(LETTERS, SamplingParams())
    emoji = "😀".encode()
    assert [stream.push([byte]).text for byte in emoji] == ["", "", "", "😀"]
    assert stream.push([0xF0, 0x9F]).text == ""
    assert stream.finish() == "�"


def test_possible_stop_is_held_back_and_given_out_when_decided() -> None:
    stream = TextStream(LETTERS, SamplingParams(stop=("abab",)))
    assert stream.push([0x61]).text == ""
    assert stream.push([0x62]).text == ""
    assert stream.push([0x62]).text == "abb"
    delta = stream.push([256, 256, 0x62])
    assert delta == ("", "abab", 2)
    assert stream.push([0x62]) == ("", "abab", 0)
    assert stream.finish() == ""


def test_special_tokens_show_on_demand() -> None:
    hidden, shown = (
        TextStream(LETTERS, SamplingParams()),
        TextStream(LETTERS, SamplingParams(skip_special_tokens=False)),
    )
    assert hidden.push([300, 0x61]).text == "a"
    assert shown.push([300, 0x61]).text == "<x>a"


def test_matching_is_linear_in_hostile_text() -> None:
    matcher = StopMatcher(("a" * 2000 + "b",))
    assert matcher.find("a" * 200_000, True) is None
    assert matcher.pending == 2000
    assert matcher.find("b", True) == (1, "a" * 2000 + "b")
