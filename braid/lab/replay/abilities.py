"""What an endpoint can do: how it counts, whether it obeys lengths, what its streams tell. Found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from braid.lab.replay.asking import Answer, Asker, TargetError, clean, count_at, dig, parse
from braid.lab.replay.files import Form
from braid.lab.replay.forms import PATHS, WordBytes, shape
from braid.lab.replay.vocabulary import Vocabulary

CHECK_TOKENS = 8
"""How many are asked for when forced lengths are tried."""
_SAYS_LITTLE = " answer is yes. Say yes and stop."
"""Behind ``LEAD``: a chat model that may end when it likes ends soon after this."""
_NO_ENTRY = (401, 403)
_MISSING = (404, 405, 501)
_STREAM_OPTIONS = ({"include_usage": True, "continuous_usage_stats": True}, {"include_usage": True})
_PROBE_SEED = 9


class NoFormError(TargetError):
    """An endpoint does not take prompts of one form; another may work."""


@dataclass(slots=True)
class Speaker:
    """Sends requests of one form, written as those of a run will be.

    ``fields`` are those that were found to be accepted; ``length_field`` holds the most tokens to answer with.
    """

    asker: Asker
    model: str
    form: Form
    length_field: str = "max_tokens"
    fields: dict[str, Any] = field(default_factory=dict)

    def send(self, words: bytes, fields: Mapping[str, Any]) -> Answer:
        return self.asker.post(PATHS[self.form], shape(self.form, self.model).body(words, fields))

    def settle(self, words: bytes) -> None:
        """Find the least that is accepted: one token of output, at temperature 0 where it may be said.

        Raises:
            NoFormError: nothing is.
            TargetError: the server lets nobody in.
        """
        lengths = ("max_tokens", "max_completion_tokens") if self.form == "chat" else ("max_tokens",)
        reasons: list[str] = []
        for name in lengths:
            for extras in ({"temperature": 0}, {}):
                answer = self.send(words, {name: 1, **extras})
                if answer.ok and isinstance(dig(answer.json, "choices"), list):
                    self.length_field, self.fields = name, dict(extras)
                    return
                reasons.append(answer.reason)
                _refuse_early(answer, self)
        raise NoFormError(f"{PATHS[self.form]} does not take {_PROMPTS[self.form]}: {reasons[0]}")

    def prompt_tokens(self, words: bytes) -> int | None:
        """How long a prompt is by the server's own count; None where it does not say.

        Raises:
            TargetError: it does not answer.
        """
        answer = self.send(words, {self.length_field: 1, **self.fields})
        if not answer.ok:
            raise TargetError(f"{PATHS[self.form]} refuses a short prompt: {answer.reason}")
        return count_at(answer.json, "usage", "prompt_tokens")


_PROMPTS: Mapping[Form, str] = {"ids": "token ids", "text": "text prompts", "chat": "messages"}


def _refuse_early(answer: Answer, speaker: Speaker) -> None:
    """Stop where nothing else can help."""
    if answer.status in _NO_ENTRY:
        raise TargetError(f"{speaker.asker.place.url} wants another API key: {answer.reason}")
    if answer.status in _MISSING or answer.ok:
        raise NoFormError(f"{PATHS[speaker.form]} is not there for {speaker.form} prompts: {answer.reason}")


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a server adds to a prompt, and for each further pair of messages; None where it tells nothing."""

    prompt: int | None
    turn: int | None = None


def measure_overheads(speaker: Speaker, vocabulary: Vocabulary, num: int) -> Overheads:
    """Count prompts of ``num`` and twice as many words.

    Raises:
        NoFormError: the server's count does not grow by one with each word.
    """
    coded = WordBytes(speaker.form, vocabulary)
    counts = []
    for seed, size in enumerate((num, 2 * num)):
        counts.append((size, speaker.prompt_tokens(coded.first(_words(coded, vocabulary, size, seed)))))
    (short, first), (long, second) = counts
    if first is None or second is None:
        return Overheads(None)
    if first - short != second - long or first < short:
        raise NoFormError(
            f"{PATHS[speaker.form]} counts {first} tokens for {short} words and {second} for {long}: prompts of exact "
            "lengths cannot be made"
        )
    return Overheads(first - short, _turn_overhead(speaker, coded, vocabulary, num, first - short))


def _turn_overhead(
    speaker: Speaker, coded: WordBytes, vocabulary: Vocabulary, num: int, prompt: int
) -> int | None:
    """Of one more pair of messages; 0 where there are no messages, None where no pair is taken."""
    if speaker.form != "chat":
        return 0
    around = shape(speaker.form, speaker.model)
    one, reply, two = (_words(coded, vocabulary, num // 2, seed) for seed in (2, 3, 4))
    try:
        total = speaker.prompt_tokens(one + around.before_reply + reply + around.after_reply + two)
    except TargetError:
        return None
    return None if total is None else total - prompt - 3 * (num // 2)


def _words(coded: WordBytes, vocabulary: Vocabulary, num: int, seed: int) -> bytes:
    generator = np.random.default_rng((_PROBE_SEED, seed))
    return coded.of(generator.integers(0, len(vocabulary), num))


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
    words = _check_words(speaker, vocabulary)
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


def _check_words(speaker: Speaker, vocabulary: Vocabulary) -> bytes:
    if speaker.form != "ids":
        return _SAYS_LITTLE.encode()
    coded = WordBytes("ids", vocabulary)
    return coded.first(_words(coded, vocabulary, 16, 5))


def tells_ids(speaker: Speaker, vocabulary: Vocabulary, fields: Mapping[str, Any]) -> bool:
    """Whether a stream brings the ids of its tokens, where they are asked for."""
    answer = speaker.send(_check_words(speaker, vocabulary), {**fields, "return_token_ids": True})
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
