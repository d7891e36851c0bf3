"""Requests of one form as a run will send them, and how the server counts their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from braid.lab.replay.asking.forms import PATHS, WordBytes, shape
from braid.lab.replay.asking.http import Answer, Asker, TargetError, count_at, dig
from braid.lab.replay.asking.vocabulary import Vocabulary
from braid.lab.replay.files import Form

_NO_ENTRY = (401, 403)
_MISSING = (404, 405, 501)
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
        counts.append((size, speaker.prompt_tokens(coded.first(check_words(coded, vocabulary, size, seed)))))
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
    one, reply, two = (check_words(coded, vocabulary, num // 2, seed) for seed in (2, 3, 4))
    try:
        total = speaker.prompt_tokens(one + around.before_reply + reply + around.after_reply + two)
    except TargetError:
        return None
    return None if total is None else total - prompt - 3 * (num // 2)


def check_words(coded: WordBytes, vocabulary: Vocabulary, num: int, seed: int) -> bytes:
    generator = np.random.default_rng((_PROBE_SEED, seed))
    return coded.of(generator.integers(0, len(vocabulary), num))
