"""The tokenizer that GGUF metadata describes, rebuilt with the ``tokenizers`` library.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from braid.core.errors import CheckpointError
from braid.text.merges import merges_from_scores
from braid.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPACE = "▁"
_ID_KEYS = ("bos", "eos", "eot", "eom")
_MARKUP = re.compile(
    "</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|b|i|u|s|p|a|ul|ol|li|div|span|img|code|strong|em|sub|sup"
    "|iframe|footer|header|body|html|head|title|br|hr|pre|bbox)>"
)


class GGUFTokenizer(NamedTuple):
    """What the metadata says: the backend, token ids by role (``bos``, ``eos``, ``eot``, ``eom``), and flags."""

    backend: Tokenizer
    ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


class _Vocabulary(NamedTuple):
    tokens: list[str]
    ids: dict[str, int]
    types: list[int]


def build(metadata: Mapping[str, Any]) -> GGUFTokenizer:
    """Build the tokenizer of a GGUF file.

    Raises:
        CheckpointError: a key is missing or wrong, or the kind is not supported; the text names the supported ones.
    """
    model = _get(metadata, "model", str)
    builders: dict[str, Callable[[Mapping[str, Any]], tuple[Tokenizer, bool]]]
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in builders:
        raise CheckpointError(
            f"tokenizer.ggml.model {model[:40]!r} is not supported; supported: {', '.join(builders)}"
        )
    backend, adds_bos = builders[model](metadata)
    template = metadata.get("tokenizer.chat_template")
    return GGUFTokenizer(
        backend,
        _role_ids(metadata, backend.get_vocab_size()),
        bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        template if isinstance(template, str) else None,
    )


def _get(metadata: Mapping[str, Any], name: str, kind: type) -> Any:
    key = f"tokenizer.ggml.{name}"
    value = metadata.get(key)
    if not isinstance(value, kind):
        state = "is missing" if value is None else f"must be a {kind.__name__}, is a {type(value).__name__}"
        raise CheckpointError(f"{key} {state}: the file holds no usable tokenizer")
    return value


def _list(metadata: Mapping[str, Any], name: str, kind: type, length: int | None = None) -> list[Any]:
    values: list[Any] = list(_get(metadata, name, list))
    if any(type(value) is not kind for value in values):
        raise CheckpointError(f"tokenizer.ggml.{name} must hold values of type {kind.__name__}")
    if length is not None and len(values) != length:
        raise CheckpointError(f"tokenizer.ggml.{name} has {len(values)} values for {length} tokens")
    return values


def _role_ids(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    for role in _ID_KEYS:
        key = f"tokenizer.ggml.{role}_token_id"
        value = metadata.get(key)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < vocab_size:
            raise CheckpointError(f"{key} is {str(value)[:40]}, must be in [0, {vocab_size})")
        ids[role] = value
    return ids


def _vocabulary(metadata: Mapping[str, Any], spell: Callable[[str, int], str]) -> _Vocabulary:
    tokens = _list(metadata, "tokens", str)
    if not tokens:
        raise CheckpointError("tokenizer.ggml.tokens is empty")
    has_types = "tokenizer.ggml.token_type" in metadata
    types = _list(metadata, "token_type", int, len(tokens)) if has_types else [NORMAL] * len(tokens)
    spelled = [
        spell(token, kind) or f"[EMPTY_{i}]"
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    ids = {token: index for index, token in enumerate(spelled)}
    if len(ids) != len(spelled):
        index, token = next((i, token) for i, token in enumerate(spelled) if ids[token] != i)
        raise CheckpointError(
            f"tokenizer.ggml.tokens holds {token[:60]!r} twice, at {index} and {ids[token]}"
        )
    return _Vocabulary(spelled, ids, types)


def _add_tokens(backend: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Tokens that are matched whole in the text, longest first; the special ones may be left out of decoded text."""
    special, plain = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind == USER_DEFINED or (
            kind == CONTROL and _MARKUP.fullmatch(token) and token not in ("<s>", "</s>")
        ):
            # Gemma's vocabulary holds HTML tags, which the usual converter marks as control; they are text.
            plain.append(AddedToken(token, normalized=False, special=False))
        elif kind in (CONTROL, UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _byte_level(metadata: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    pre = _pre_tokenizer(metadata)
    vocabulary = _vocabulary(metadata, lambda token, kind: token)
    backend = Tokenizer(_bpe(vocabulary.ids, _merges(metadata), ignore_merges=pre.whole_words))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, vocabulary)
    return backend, pre.adds_bos


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise CheckpointError(f"tokenizer.ggml.pre {str(name)[:40]!r} is not supported; supported: {known}")
    return PRE_TOKENIZERS[name]


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for index, merge in enumerate(_list(metadata, "merges", str)):
        # A part may itself begin with a blank in old files, never end with one.
        left, blank, right = merge[1:].partition(" ")
        if not blank or not right:
            raise CheckpointError(f"tokenizer.ggml.merges[{index}] {merge[:40]!r} is not two parts")
        merges.append((merge[0] + left, right))
    return merges


def _bpe(ids: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=ids, merges=merges, **options)
    except Exception as error:  # the library raises bare Exception for a merge outside the vocabulary
        raise CheckpointError(
            f"tokenizer.ggml.merges do not fit the vocabulary: {str(error)[:200]}"
        ) from error


def _sentence_piece(metadata: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    vocabulary = _vocabulary(metadata, _spell_piece)
    scores = _list(metadata, "scores", float, len(vocabulary.tokens))
    options = {}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    if type(unknown) is int and 0 <= unknown < len(vocabulary.tokens):
        options["unk_token"] = vocabulary.tokens[unknown]
    pieces = zip(vocabulary.tokens, vocabulary.types, scores, strict=True)
    joinable = {token: score for token, kind, score in pieces if kind == NORMAL}
    merges = merges_from_scores(vocabulary.tokens, joinable)
    backend = Tokenizer(_bpe(vocabulary.ids, merges, byte_fallback=True, fuse_unk=True, **options))
    replace = normalizers.Replace(" ", SPACE)
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.normalizer = replace
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    _add_tokens(backend, vocabulary)
    return backend, True


def _spell_piece(token: str, kind: int) -> str:
    """User-defined pieces are matched in the text as it is, before blanks are respelled."""
    return token.replace(SPACE, " ") if kind == USER_DEFINED else token
