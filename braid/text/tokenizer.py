"""One tokenizer for every checkpoint. Built on the ``tokenizers`` library; decoding is done here, byte by byte.

Text is decoded as the joined bytes of its tokens, read as UTF-8 with U+FFFD in place of what is not valid. That makes
one-shot and incremental decoding equal by construction. For vocabularies with byte tokens it differs from the library
in one case: a run of byte tokens that is partly invalid keeps its valid characters here, and loses them there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tokenizers
from tokenizers import pre_tokenizers

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text import folder_tokenizer, gguf_tokenizer

if TYPE_CHECKING:
    from braid.checkpoint.open import Checkpoint

END_TOKENS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
"""Special tokens that end a turn or a document in whatever vocabulary holds them."""
_SPACE = "▁"


class DecodingRules(NamedTuple):
    """How token strings spell bytes.

    Args:
        byte_level: each character stands for a byte (GPT-2's alphabet); otherwise ``▁`` stands for a blank.
        byte_tokens: ``<0x0A>`` is the byte 10.
        strip_blank: the first blank of a text is not part of it.
    """

    byte_level: bool
    byte_tokens: bool = False
    strip_blank: bool = False


class Tokenizer:
    """Text to ids and back. Safe to use from several threads; ``encode`` releases the interpreter's lock.

    Args:
        backend: the library's tokenizer.
        eos_token_ids: what ends a generation, beside the END_TOKENS found in the vocabulary.
        bos_token_id: first token of a text, if the model has one.
        eos_token: the text of the main end token, for chat templates.
        add_bos, add_eos: whether ``encode`` adds them; None leaves it to the backend's post-processor.
        special_tokens: texts that are special beside those the backend marks.
        chat_template: Jinja source, if the checkpoint has one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Iterable[int] = (),
        bos_token_id: int | None = None,
        eos_token: str | None = None,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        special_tokens: Iterable[str] = (),
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._plain_backend: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self.chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        listed = {id for id, token in added.items() if token.content in set(special_tokens)}
        self.special_token_ids = frozenset({id for id, token in added.items() if token.special} | listed)
        self.bos_token_id = bos_token_id
        self.bos_token = None if bos_token_id is None else backend.id_to_token(bos_token_id)
        self.eos_token = eos_token
        ends = {id for id, token in added.items() if token.content in END_TOKENS}
        self.eos_token_ids = frozenset({*eos_token_ids, *ends})
        self._main_eos = None if eos_token is None else backend.token_to_id(eos_token)
        self._prefix, self._suffix = self._affixes(add_bos, add_eos)
        self._rules = decoding_rules(backend)
        self._bytes: dict[int, bytes] = {}

    def _affixes(self, add_bos: bool | None, add_eos: bool | None) -> tuple[list[int], list[int]]:
        """Ids that ``encode`` puts around a text: the post-processor's, corrected by the explicit flags."""
        inner = self._backend.encode("a", add_special_tokens=False).ids
        outer = self._backend.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(outer)) if outer[i : i + len(inner)] == inner), 0)
        prefix, suffix = outer[:at], outer[at + len(inner) :]
        if self.bos_token_id is not None and add_bos is not None:
            prefix = [id for id in prefix if id != self.bos_token_id]
            prefix = [self.bos_token_id, *prefix] if add_bos else prefix
        if self._main_eos is not None and add_eos is not None:
            suffix = [id for id in suffix if id != self._main_eos]
            suffix = [*suffix, self._main_eos] if add_eos else suffix
        return prefix, suffix

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: put the model's begin (and end) tokens around it.
            parse_special: read the texts of special tokens as those tokens; False takes them as plain text.

        Raises:
            InvalidParameterError: the text holds a lone surrogate.
        """
        backend = self._backend if parse_special else self._without_special()
        try:
            # The batch call is the one that lets other threads run meanwhile.
            ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidParameterError("text must be valid Unicode, it holds a lone surrogate") from error
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def _without_special(self) -> tokenizers.Tokenizer:
        with self._lock:
            if self._plain_backend is None:
                # A copy: the flag belongs to the backend and would race with other threads' calls.
                self._plain_backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
                self._plain_backend.encode_special_tokens = True
            return self._plain_backend

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, *, continuation: bool = False
    ) -> str:
        """The text of token ids; ids outside the vocabulary have none.

        Args:
            skip_special_tokens: leave special tokens out.
            continuation: the text follows another one, so a leading blank belongs to it (SentencePiece vocabularies
                that put a blank before every text lose it otherwise).
        """
        skip = self.special_token_ids if skip_special_tokens else frozenset()
        text = b"".join([self.token_bytes(id) for id in ids if id not in skip]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._rules.strip_blank and not continuation else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; empty outside the vocabulary."""
        data = self._bytes.get(id)
        if data is None:
            token = self._backend.id_to_token(id) if 0 <= id < 2**32 else None
            if token is None:
                return b""
            data = self._bytes[id] = _spell(token, self._rules)
        return data

    def token_text(self, id: int) -> str:
        """One token as text by itself; parts of a character show as U+FFFD."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token given as the vocabulary spells it, or None."""
        return self._backend.token_to_id(token)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint: from GGUF metadata, else from the files in its folder.

    Raises:
        CheckpointError: the tokenizer is missing, broken, or of a kind that is not supported.
    """
    declared = _ids(checkpoint.generation_config.get("eos_token_id")) | _ids(
        checkpoint.config.get("eos_token_id")
    )
    if checkpoint.gguf is not None:
        return _from_gguf(gguf_tokenizer.build(checkpoint.gguf), declared)
    return _from_folder(folder_tokenizer.build(checkpoint.source.root), declared)


def _from_gguf(built: gguf_tokenizer.GGUFTokenizer, declared: set[int]) -> Tokenizer:
    ends = {built.ids[role] for role in ("eos", "eot", "eom") if role in built.ids}
    eos = built.ids.get("eos")
    return Tokenizer(
        built.backend,
        eos_token_ids=declared | ends,
        bos_token_id=built.ids.get("bos"),
        eos_token=None if eos is None else built.backend.id_to_token(eos),
        add_bos=built.add_bos,
        add_eos=built.add_eos,
        chat_template=built.chat_template,
    )


def _from_folder(built: folder_tokenizer.FolderTokenizer, declared: set[int]) -> Tokenizer:
    bos = None if built.bos_token is None else built.backend.token_to_id(built.bos_token)
    eos = None if built.eos_token is None else built.backend.token_to_id(built.eos_token)
    return Tokenizer(
        built.backend,
        eos_token_ids=declared if eos is None else declared | {eos},
        bos_token_id=bos,
        eos_token=built.eos_token,
        add_bos=built.add_bos,
        add_eos=built.add_eos,
        special_tokens=built.special_tokens,
        chat_template=built.chat_template,
    )


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {id for id in values if type(id) is int and id >= 0}


def decoding_rules(backend: tokenizers.Tokenizer) -> DecodingRules:
    """What the backend's decoder does, as rules for single tokens.

    Raises:
        CheckpointError: the decoder is neither byte-level nor SentencePiece's.
    """
    steps = _decoder_steps(backend)
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return DecodingRules(byte_level=True)
    replaces = any(step["type"] == "Replace" and step.get("content") == " " for step in steps)
    if not replaces and "Metaspace" not in kinds:
        raise CheckpointError(
            f"tokenizer decoder {'+'.join(kinds) or 'none'} is not supported; supported: ByteLevel, and Replace or "
            "Metaspace with ByteFallback (SentencePiece)"
        )
    strips = kinds.get("Strip", {}).get("start", 0) > 0
    prepends = kinds.get("Metaspace", {"prepend_scheme": "never"}).get("prepend_scheme", "always") != "never"
    return DecodingRules(
        byte_level=False, byte_tokens="ByteFallback" in kinds, strip_blank=strips or prepends
    )


def _decoder_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    # The state is the decoder's part of tokenizer.json; the whole file would be large.
    step: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return list(step["decoders"]) if step["type"] == "Sequence" else [step]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the others for U+0100 onwards."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    alphabet = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet


_ALPHABET = _byte_alphabet()


def _spell(token: str, rules: DecodingRules) -> bytes:
    if rules.byte_level:
        try:
            return bytes([_ALPHABET[char] for char in token])
        except KeyError:  # an added token in plain spelling
            return token.encode()
    if rules.byte_tokens and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE, " ").encode()
