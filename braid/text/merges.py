"""Merge lists for SentencePiece vocabularies, which store scores; large ones take seconds and are kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from braid.core.env import cache_dir

_DIGEST = 32
_WORTH_KEEPING = 50_000
"""Pieces from which on the list is kept on disk."""


def merges_from_scores(tokens: Sequence[str], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Merges that give SentencePiece's BPE result: it always joins the neighbours whose union scores best.

    Every cut of a piece into two pieces is a merge, ranked by the piece's score; equal scores keep the order of ids.

    Args:
        tokens: the vocabulary, by id.
        scores: of the tokens that may be joined or come of joining.
    """
    ids = {token: index for index, token in enumerate(tokens) if token in scores}
    if len(ids) < _WORTH_KEEPING:
        pairs = _pairs(ids, scores)
    else:
        path = cache_dir() / "tokenizers" / f"{_key(ids, scores)}.merges"
        stored = _read(path, len(tokens))
        pairs = stored or _pairs(ids, scores)
        if stored is None:
            _write(path, pairs)
    numbers = iter(pairs)
    return [(tokens[left], tokens[right]) for left, right in zip(numbers, numbers, strict=True)]


def _pairs(ids: Mapping[str, int], scores: Mapping[str, float]) -> array[int]:
    pairs = array("I")
    for token in sorted(ids, key=lambda token: -scores[token]):
        cuts = [
            (ids[left], ids[right])
            for at in range(1, len(token))
            if (left := token[:at]) in ids and (right := token[at:]) in ids
        ]
        cuts.sort()
        for cut in cuts:
            pairs.extend(cut)
    return pairs


def _key(ids: Mapping[str, int], scores: Mapping[str, float]) -> str:
    digest = hashlib.sha256("\0".join(ids).encode())
    digest.update(array("I", ids.values()).tobytes())
    digest.update(array("d", (scores[token] for token in ids)).tobytes())
    return digest.hexdigest()


def _read(path: Path, num_tokens: int) -> array[int] | None:
    """The pairs of ids in a file, or None where it is missing or does not fit its checksum."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    pairs = array("I")
    body = data[_DIGEST:]
    if hashlib.sha256(body).digest() != data[:_DIGEST] or len(body) % (2 * pairs.itemsize):
        return None
    pairs.frombytes(body)
    return pairs if pairs and max(pairs) < num_tokens else None


def _write(path: Path, pairs: array[int]) -> None:
    """Keep the pairs; where the cache cannot be written (read-only, full) the next start computes them again."""
    body = pairs.tobytes()
    part = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(body).digest() + body)
        part.replace(path)
