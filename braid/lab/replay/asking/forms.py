"""How a request is written: the bytes around the words of a prompt, the same for questions and for a run.

A prompt is words of one length, so ``n`` of them are ``n * width`` bytes and a prefix of a prompt is a prefix of its
bytes. Text begins with a fixed first word: templates and tokenizers treat the white space at a text's very beginning
in ways of their own, and so the words behind it count the same wherever they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from braid.lab.replay.asking.vocabulary import LEAD, Vocabulary
from braid.lab.replay.files import Form

FORMS: tuple[Form, ...] = ("ids", "text", "chat")
PATHS: Mapping[Form, str] = {
    "ids": "/v1/completions",
    "text": "/v1/completions",
    "chat": "/v1/chat/completions",
}


_Bytes = TypeVar("_Bytes", bytes, memoryview)


@dataclass(frozen=True, slots=True)
class Shape:
    """A body is ``head``, the words, ``close``, then the other fields (``Shape.tail``).

    ``before_reply`` and ``after_reply`` stand around an earlier reply; with ids, an empty reply has neither.
    """

    head: bytes
    close: bytes
    before_reply: bytes = b""
    after_reply: bytes = b""

    def tail(self, fields: Mapping[str, Any]) -> bytes:
        """What follows the words; ``fields`` are those beside the model and the prompt."""
        rest = json.dumps(fields, separators=(",", ":"))[1:-1].encode()
        return b"%b%b%b}" % (self.close, b"," if rest else b"", rest)

    def body(self, words: bytes, fields: Mapping[str, Any]) -> bytes:
        return self.head + words + self.tail(fields)


def shape(form: Form, model: str) -> Shape:
    """How ``form`` is written for a model."""
    opening = b'{"model":%b,' % json.dumps(model).encode()
    lead = LEAD.encode()
    if form == "ids":
        return Shape(opening + b'"prompt":[', b"]", b",", b",")
    if form == "text":
        return Shape(opening + b'"prompt":"' + lead, b'"')
    user, assistant = b'{"role":"user","content":"' + lead, b'{"role":"assistant","content":"'
    return Shape(opening + b'"messages":[' + user, b'"}]', b'"},' + assistant, b'"},' + user)


class WordBytes:
    """The bytes of words, by their numbers.

    Ids are written with a comma before each, padded with white space to one width (which JSON allows).
    """

    def __init__(self, form: Form, vocabulary: Vocabulary) -> None:
        if form == "ids":
            digits = max((len(str(number)) for number in vocabulary.ids), default=0)
            words = [f",{number:>{digits}}" for number in vocabulary.ids]
        else:
            words = [json.dumps(text)[1:-1] for text in vocabulary.texts]
        self.width = max(map(len, words), default=0)
        """Bytes of a word; ``skip`` fewer of the first in a prompt."""
        self._table = np.array([word.encode() for word in words], dtype=f"S{self.width}")
        self.skip = 1 if form == "ids" else 0

    def of(self, numbers: npt.NDArray[Any]) -> bytes:
        """``width`` bytes for each word, as they stand inside a prompt."""
        taken: npt.NDArray[np.bytes_] = self._table[numbers]
        return taken.tobytes()

    def first(self, words: _Bytes) -> _Bytes:
        """The words as they stand at the beginning of a prompt or behind an earlier reply."""
        return words[self.skip :]
