"""How a server answers: whether it obeys lengths, what its streams tell. Found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from braid.lab.replay.asking.forms import PATHS, WordBytes
from braid.lab.replay.asking.http import Answer, TargetError, clean, count_at, dig, parse
from braid.lab.replay.asking.speaker import Speaker, check_words
from braid.lab.replay.asking.vocabulary import Vocabulary

CHECK_TOKENS = 8
"""How many are asked for when forced lengths are tried."""
_SAYS_LITTLE = " answer is yes. Say yes and stop."
"""Behind ``LEAD``: a chat model that may end when it likes ends soon after this."""
_STREAM_OPTIONS = ({"include_usage": True, "continuous_usage_stats": True}, {"include_usage": True})


@dataclass(frozen=True, kw_only=True, slots=True)
class Answering:
    """How a server answers.

    ``length_fields`` all hold the number of tokens to answer with; ``fields`` are the same in every request.
    """

    length_fields: tuple[str, ...]
    fields: Mapping[str, Any]
    enforced: bool
    continuous_usage: bool
    reports_cached: bool
    notes: tuple[str, ...]


def try_answering(speaker: Speaker, vocabulary: Vocabulary) -> Answering:
    """Ask for a few tokens with everything a replay would like, then with as much of it as is taken.

    Raises:
        TargetError: an answer that makes no sense.
    """
    wanted: list[dict[str, Any]] = [{"ignore_eos": True}, {"min_tokens": CHECK_TOKENS}, {"stream": True}]
    accepted, answer = _accepted(speaker, vocabulary, wanted)
    notes = [f"The server does not take {name}." for want in wanted for name in want if name not in accepted]
    chunks = list(_chunks(answer))
    if not chunks:
        raise TargetError(f"{PATHS[speaker.form]} answers with nonsense: {answer.reason}")
    if "stream" in accepted and not _is_stream(answer):
        notes.append("The server does not stream: its first token comes with its last.")
        accepted = {name: value for name, value in accepted.items() if not name.startswith("stream")}
    enforced, why = _is_enforced(accepted, chunks)
    continuous = _is_continuous(chunks)
    if _is_stream(answer) and not continuous:
        notes.append("The server does not say how many tokens a piece of a stream has: each counts as one.")
    lengths = tuple(name for name in (speaker.length_field, "min_tokens") if name in accepted)
    return Answering(
        length_fields=lengths,
        fields={name: value for name, value in accepted.items() if name not in lengths},
        enforced=enforced,
        continuous_usage=continuous,
        reports_cached=count_at(_usage(chunks), "prompt_tokens_details", "cached_tokens") is not None,
        notes=(*notes, *why),
    )


def _accepted(
    speaker: Speaker, vocabulary: Vocabulary, wanted: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], Answer]:
    """The fields that are taken together, as many of them as can be, and the answer to them."""
    words = _prompt_of(speaker, vocabulary)
    least = {speaker.length_field: CHECK_TOKENS, **speaker.fields}
    everything = least | {name: value for want in wanted for name, value in want.items()}
    answer = speaker.send(words, everything | {"stream_options": _STREAM_OPTIONS[0]})
    if answer.ok:
        return everything | {"stream_options": _STREAM_OPTIONS[0]}, answer
    taken, answer = least, speaker.send(words, least)
    for want in wanted:
        taken, answer = _with(speaker, words, taken, answer, want)
    for options in _STREAM_OPTIONS if "stream" in taken else ():
        if "stream_options" not in taken:
            taken, answer = _with(speaker, words, taken, answer, {"stream_options": options})
    if not answer.ok:
        raise TargetError(
            f"{PATHS[speaker.form]} does not answer with {CHECK_TOKENS} tokens: {answer.reason}"
        )
    return taken, answer


def _with(
    speaker: Speaker, words: bytes, taken: dict[str, Any], answer: Answer, want: Mapping[str, Any]
) -> tuple[dict[str, Any], Answer]:
    """``taken`` and ``want`` with their answer, if they are accepted."""
    more = {**taken, **want}
    found = speaker.send(words, more)
    return (more, found) if found.ok else (taken, answer)


def _prompt_of(speaker: Speaker, vocabulary: Vocabulary) -> bytes:
    if speaker.form != "ids":
        return _SAYS_LITTLE.encode()
    coded = WordBytes("ids", vocabulary)
    return coded.first(check_words(coded, vocabulary, 16, 5))


def tells_ids(speaker: Speaker, vocabulary: Vocabulary, fields: Mapping[str, Any]) -> bool:
    """Whether a stream brings the ids of its tokens, where they are asked for."""
    answer = speaker.send(_prompt_of(speaker, vocabulary), {**fields, "return_token_ids": True})
    return answer.ok and any(dig(chunk, "choices", 0, "token_ids") for chunk in _chunks(answer))


def _is_stream(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").lower().startswith("text/event-stream")


def _chunks(answer: Answer) -> Iterator[Any]:
    """The JSON objects of a stream, or the one of an answer in one piece."""
    if not _is_stream(answer):
        if isinstance(dig(whole := answer.json, "choices"), list):
            yield whole
        return
    for line in answer.body.splitlines():
        if line.startswith(b"data:") and isinstance(value := parse(line[5:]), dict):
            yield value


def _usage(chunks: Sequence[Any]) -> Any:
    """The last that was said of it."""
    return next((chunk["usage"] for chunk in reversed(chunks) if dig(chunk, "usage")), None)


def _is_continuous(chunks: Sequence[Any]) -> bool:
    pieces = [chunk for chunk in chunks if dig(chunk, "choices", 0)]
    return len(pieces) > 1 and all(
        count_at(piece, "usage", "completion_tokens") is not None for piece in pieces[1:]
    )


def _is_enforced(accepted: Mapping[str, Any], chunks: Sequence[Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether the answer has the length that was asked for, and what to say if not."""
    error = next((text for chunk in chunks if (text := dig(chunk, "error"))), None)
    if error is not None:
        raise TargetError(f"the server breaks off with an error: {clean(error)}")
    if "ignore_eos" not in accepted and "min_tokens" not in accepted:
        return False, ("Output lengths are not enforced: the server has neither ignore_eos nor min_tokens.",)
    num = count_at(_usage(chunks), "completion_tokens")
    reason = next(
        (text for chunk in reversed(chunks) if (text := dig(chunk, "choices", 0, "finish_reason"))), None
    )
    if num == CHECK_TOKENS or (num is None and reason == "length"):
        return True, ()
    got = f"{num} tokens" if num is not None else f"an answer that ended with {reason!r}"
    return False, (
        f"Output lengths are not enforced: asked for {CHECK_TOKENS} tokens, the server gave {got}.",
    )
