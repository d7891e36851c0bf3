"""Finding the words that prompts are made of: each exactly one token of the server's, also one after another.

A server that tokenises for us tells the ids; of any other the tokens are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from braid.lab.replay.asking.http import Asker, TargetError, dig
from braid.lab.replay.asking.words import WORDS

LEAD = "The"
"""What every text begins with; it counts as the server's own addition."""
MIN_WORDS = 64
_GROUP = 32
_SEQUENCE = 2048
_MAX_DROPS = 100

Count = Callable[[Sequence[str]], int]
"""How many tokens words take behind ``LEAD``."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words that the server's tokenizer reads as exactly one ordinary token each, also one after another.

    ``texts[i]`` (each begins with a space) is the token ``ids[i]``; there are no ids where the server does not tell
    them. All texts are of one length.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(map(len, self.texts))) > 1:
            raise ValueError("the words of a vocabulary must be of one length")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class RemoteTokenizer:
    """A server's way to tokenise: ``text_field`` holds the text, ``special_field`` asks for BOS and the like."""

    asker: Asker
    path: str
    model: str
    text_field: str
    special_field: str

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids.

        Raises:
            TargetError: no ids came.
        """
        body = {"model": self.model, self.text_field: text, self.special_field: special}
        answer = self.asker.post(self.path, body)
        ids = _ids(answer.json) if answer.ok else None
        if ids is None:
            raise TargetError(f"{self.path} does not give token ids, it answers {answer.reason}")
        return ids


def find_tokenizer(asker: Asker, model: str) -> RemoteTokenizer | None:
    """The server's tokenizer, in any of the ways that servers have it; None where it has none."""
    styles = (("prompt", "add_special_tokens"), ("content", "add_special"))
    for path in ("/tokenize", "/v1/tokenize"):
        for text_field, special_field in styles:
            found = RemoteTokenizer(asker, path, model, text_field, special_field)
            body = {"model": model, text_field: LEAD + WORDS[0], special_field: False}
            answer = asker.maybe("POST", path, body)
            if answer is not None and _ids(answer.json):
                return found
    return None


def _ids(value: Any) -> list[int] | None:
    """Of ``{"tokens": [1, 2]}``, or of tokens that are objects with an ``id``."""
    tokens = dig(value, "tokens")
    if not isinstance(tokens, list):
        return None
    ids = [dig(token, "id") if isinstance(token, dict) else token for token in tokens]
    good = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in ids)
    return ids if good else None


def vocabulary_by_ids(tokenizer: RemoteTokenizer, limit: int | None = None) -> Vocabulary:
    """The words that the tokenizer reads as one token each, with their ids; ``limit`` is the server's context.

    Raises:
        TargetError: too few of them, or it reads them another way when they stand together.
    """
    lead = tokenizer.encode(LEAD)

    def tokens(words: Sequence[str]) -> list[int]:
        ids = tokenizer.encode(LEAD + "".join(words))
        return ids[len(lead) :] if ids[: len(lead)] == lead else []

    most = _SEQUENCE if limit is None else max(1, min(_SEQUENCE, limit // 2))
    words = single_words(lambda words: len(tokens(words)), min(most, len(WORDS)))
    together = tokens(words)
    if len(together) != len(words):
        together = [tokens([word])[0] for word in words]
    ids = dict(zip(words, together, strict=True))
    for _ in range(_MAX_DROPS):
        words = _distinct(words, ids)
        _require(words)
        sequence = random_words(words, most, 1)
        broken = _first_broken([ids[word] for word in sequence], tokens(sequence))
        if broken is None:
            return Vocabulary(tuple(words), tuple(ids[word] for word in words))
        # Either of the two may be the one that takes tokens from its neighbour.
        words = [word for word in words if word not in sequence[broken : broken + 2]]
    raise TargetError(f"{tokenizer.path} reads words another way when they stand together")


def _distinct(words: Sequence[str], ids: dict[str, int]) -> list[str]:
    """Without the words whose token is that of another (an unknown-word token, say)."""
    uses: dict[int, int] = {}
    for word in words:
        uses[ids[word]] = uses.get(ids[word], 0) + 1
    return [word for word in words if uses[ids[word]] == 1]


def _first_broken(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """The place where they begin to differ."""
    if list(expected) == list(found):
        return None
    pairs = zip(expected, found, strict=False)
    return next(
        (at for at, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)) - 1
    )


def single_words(count: Count, limit: int = len(WORDS)) -> list[str]:
    """Those of the first ``limit`` words that count as one token: groups that do not count right are halved.

    Raises:
        TargetError: too few of them.
    """
    words = list(WORDS[:limit])
    if count(words) != len(words):
        groups = [words[start : start + _GROUP] for start in range(0, len(words), _GROUP)]
        words = [word for group in groups for word in _singles(group, count)]
    _require(words)
    return words


def _singles(group: Sequence[str], count: Count) -> Sequence[str]:
    num = count(group)
    if num == len(group):
        return group
    hopeless = len(group) >= _GROUP // 4 and num >= 2 * len(group)
    if len(group) == 1 or hopeless:
        return ()
    half = len(group) // 2
    return [*_singles(group[:half], count), *_singles(group[half:], count)]


def _require(words: Sequence[str]) -> None:
    if len(words) < MIN_WORDS:
        raise TargetError(
            f"the server's tokenizer has only {len(words)} of {len(WORDS)} common English words as single tokens; "
            f"prompts of exact lengths need at least {MIN_WORDS}"
        )


def random_words(words: Sequence[str], num: int, seed: int) -> list[str]:
    """A sequence to check with, always the same."""
    return [words[at] for at in np.random.default_rng(seed).integers(0, len(words), num)]
