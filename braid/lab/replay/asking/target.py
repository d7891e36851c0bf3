"""What a server can do, found by asking it before a run: model, context, tokenizer, forced lengths.

A handful of requests, written as those of the run will be. What is optional and missing costs a note; what a replay
cannot do without is an error that says what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from braid.lab.replay.asking.answering import CHECK_TOKENS, tells_ids, try_answering
from braid.lab.replay.asking.cards import context_of, find_card, name_of
from braid.lab.replay.asking.forms import FORMS
from braid.lab.replay.asking.http import Asker, TargetError, endpoint
from braid.lab.replay.asking.speaker import NoFormError, Overheads, Speaker, measure_overheads
from braid.lab.replay.asking.vocabulary import (
    LEAD,
    RemoteTokenizer,
    Vocabulary,
    find_tokenizer,
    single_words,
    vocabulary_by_ids,
)
from braid.lab.replay.asking.words import WORDS
from braid.lab.replay.files import Form

__all__ = ["ServerFacts", "Target", "TargetError", "Vocabulary", "probe"]

_COUNTED = 128
"""Words whose tokens are counted, and twice as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where to send. ``url`` is a base URL (with or without /v1); ``model`` None for the only one there is."""

    url: str
    model: str | None = None
    api_key: str | None = None


def _all_fields() -> Mapping[str, Any]:
    options = {"include_usage": True, "continuous_usage_stats": True}
    return {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": options}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What was found.

    Args:
        model: the served name.
        max_tokens: its context, if the server says.
        server: name and version, if it says.
        form: how prompts are written: ``ids`` and ``text`` go to /v1/completions, ``chat`` to /v1/chat/completions.
        vocabulary: what prompts are made of.
        overhead_tokens: what the server adds to a prompt of any length (BOS, a chat template, the fixed first word of
            a text), counted in ``in_tok``.
        turn_overhead_tokens: what each further pair of messages adds in a chat with live history.
        output_enforced: the server answers with exactly as many tokens as asked.
        continuous_usage: it says with every piece of a stream how many tokens there were.
        reports_cached: its usage tells cached prompt tokens.
        tells_ids: a stream brings the ids of its tokens where ``return_token_ids`` asks for them.
        length_fields: fields of a request that hold the number of tokens to answer with.
        fields: further fields, the same in every request.
        notes: what it could not do, one sentence each.
    """

    model: str
    max_tokens: int | None
    server: str
    form: Form
    vocabulary: Vocabulary
    overhead_tokens: int = 0
    turn_overhead_tokens: int = 0
    output_enforced: bool = True
    continuous_usage: bool = False
    reports_cached: bool = False
    tells_ids: bool = False
    length_fields: tuple[str, ...] = ("max_tokens", "min_tokens")
    fields: Mapping[str, Any] = field(default_factory=_all_fields)
    notes: tuple[str, ...] = ()


def probe(target: Target, form: Form | None = None, *, timeout_s: float = 120.0) -> ServerFacts:
    """Ask a server everything that a replay must know.

    Args:
        target: where it is.
        form: how prompts shall be written; None for the first that works of ids, text, chat.
        timeout_s: for each answer.

    Raises:
        TargetError: it is not there, lets us not in, has not the model, or cannot do what is needed.
    """
    place = endpoint(target.url)
    asker = Asker(place, target.api_key, timeout_s)
    card = find_card(asker, target.model)
    limit = context_of(asker, card)
    tokenizer = find_tokenizer(asker, card.model)
    known = None if tokenizer is None else vocabulary_by_ids(tokenizer, limit)
    speaker, vocabulary, overheads = _speaker(asker, card.model, form, known, limit)
    prompt, turn, more = _settled(overheads, speaker, tokenizer)
    answering = try_answering(speaker, vocabulary)
    every = {**answering.fields, **dict.fromkeys(answering.length_fields, CHECK_TOKENS)}
    return ServerFacts(
        model=card.model,
        max_tokens=limit,
        server=name_of(asker, card),
        form=speaker.form,
        vocabulary=vocabulary,
        overhead_tokens=prompt,
        turn_overhead_tokens=turn,
        output_enforced=answering.enforced,
        continuous_usage=answering.continuous_usage,
        reports_cached=answering.reports_cached,
        tells_ids=speaker.form == "ids" and tells_ids(speaker, vocabulary, every),
        length_fields=answering.length_fields,
        fields=answering.fields,
        notes=(*card.notes, *more, *answering.notes),
    )


class _Found(NamedTuple):
    speaker: Speaker
    vocabulary: Vocabulary
    overheads: Overheads


def _speaker(
    asker: Asker, model: str, form: Form | None, known: Vocabulary | None, limit: int | None
) -> _Found:
    """The form that was asked for, or the first that works."""
    reasons = []
    num = _COUNTED if limit is None else max(4, min(_COUNTED, limit // 4))
    for tried in FORMS if form is None else (form,):
        speaker = Speaker(asker, model, tried)
        try:
            speaker.settle(_few_words(tried, known))
            vocabulary = known or _counted_vocabulary(speaker, limit)
            return _Found(speaker, vocabulary, measure_overheads(speaker, vocabulary, num))
        except NoFormError as error:
            reasons.append(f"{tried}: {error}")
    raise TargetError(
        f"{asker.place.url} takes no prompts that a replay can send; tried " + "; ".join(reasons)
    )


def _few_words(form: Form, vocabulary: Vocabulary | None) -> bytes:
    if form != "ids":
        return "".join(WORDS[:8]).encode()
    if vocabulary is None:
        raise NoFormError("the server has no /tokenize, so the ids of no words are known")
    digits = [str(number) for number in vocabulary.ids[:8]]
    return ",".join(digits).encode()


def _counted_vocabulary(speaker: Speaker, limit: int | None) -> Vocabulary:
    """Words without ids, of a server that only counts.

    Raises:
        TargetError: it does not even count.
    """
    base = speaker.prompt_tokens(b"")
    if base is None:
        raise TargetError(
            "the server has no /tokenize and its answers have no usage: prompts of exact lengths cannot be made"
        )

    def count(words: Sequence[str]) -> int:
        return (speaker.prompt_tokens("".join(words).encode()) or 0) - base

    most = len(WORDS) if limit is None else max(1, min(len(WORDS), limit // 2))
    return Vocabulary(tuple(single_words(count, most)), ())


def _settled(
    overheads: Overheads, speaker: Speaker, tokenizer: RemoteTokenizer | None
) -> tuple[int, int, tuple[str, ...]]:
    """Overheads of a prompt and of a turn; where the server does not count, what can be known without it."""
    notes: list[str] = []
    prompt, turn = overheads.prompt, overheads.turn
    if prompt is None:
        notes.append(
            "Answers have no usage: prompt lengths are by the server's tokenizer, and nothing checks them."
        )
        prompt = (
            0 if speaker.form == "ids" or tokenizer is None else len(tokenizer.encode(LEAD, special=True))
        )
        if speaker.form == "chat":
            notes.append("Prompts are longer than planned by the chat template, which could not be counted.")
    if turn is None:
        turn = 0
        notes.append(
            "What a pair of messages adds in a chat could not be counted: live histories are longer by it."
        )
    return prompt, turn, tuple(notes)
