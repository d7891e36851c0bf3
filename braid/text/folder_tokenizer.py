"""The tokenizer in a Hugging Face folder: ``tokenizer.json`` and the files around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from braid.core.errors import CheckpointError

MAX_TOKENIZER_BYTES = 512 * 2**20
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class FolderTokenizer(NamedTuple):
    """What the files say; ``add_bos`` and ``add_eos`` are None where only the backend's post-processor decides."""

    backend: Tokenizer
    special_tokens: frozenset[str]
    bos_token: str | None
    eos_token: str | None
    add_bos: bool | None
    add_eos: bool | None
    chat_template: str | None


def build(root: Path) -> FolderTokenizer:
    """Read a folder's tokenizer.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    backend = _backend(root / "tokenizer.json")
    config = _json(root / "tokenizer_config.json")
    special = _json(root / "special_tokens_map.json")
    roles = {role: _content(config[role] if role in config else special.get(role)) for role in _ROLES}
    _declare(backend, config.get("added_tokens_decoder"), [token for token in roles.values() if token])
    extra = config.get("additional_special_tokens") or special.get("additional_special_tokens") or []
    listed = [_content(token) for token in extra] if isinstance(extra, list) else []
    return FolderTokenizer(
        backend,
        frozenset(token for token in (*roles.values(), *listed) if token),
        roles["bos_token"],
        roles["eos_token"],
        _flag(config.get("add_bos_token")),
        _flag(config.get("add_eos_token")),
        _chat_template(root, config),
    )


def _backend(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: is missing; Braid reads fast tokenizers. A folder with tokenizer.model only can be converted: "
            "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
        )
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_TOKENIZER_BYTES} bytes")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
        raise CheckpointError(f"{path}: is not a valid tokenizer: {str(error)[:200]}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return value


def _content(token: Any) -> str | None:
    """A token's text; the files spell tokens as strings or as objects."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _declare(backend: Tokenizer, decoder: Any, roles: list[str]) -> None:
    """Add the tokens that only tokenizer_config.json knows, in the order of their ids; make the roles special."""
    entries = decoder if isinstance(decoder, dict) else {}
    for key in sorted((key for key in entries if key.isdigit()), key=int):
        entry, text = entries[key], _content(entries[key])
        if text is None or backend.token_to_id(text) is not None:
            continue
        flags = {
            name: bool(entry.get(name))
            for name in ("special", "lstrip", "rstrip", "single_word", "normalized")
        }
        backend.add_tokens([AddedToken(text, **flags)])
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens(
        [text for text in roles if text not in added and backend.token_to_id(text) is not None]
    )


def _chat_template(root: Path, config: dict[str, Any]) -> str | None:
    """The default template: chat_template.jinja, then chat_template.json, then tokenizer_config.json."""
    path = root / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    value = _json(root / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
