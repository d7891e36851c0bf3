"""Which format a model answers in: asked for by name, brought by the checkpoint, or seen in its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from braid.core.errors import CheckpointError
from braid.text.chat_parsing import ChatParser
from braid.text.format_data import NONE, FormatData, by_name, guess
from braid.text.model_format import SpecialTokens, TemplateFormat
from braid.text.reply_format import PlainFormat, ReplyFormat
from braid.text.wire import wire_of

_THINK = "</think>"
_MAX_CONFIG_BYTES = 64 << 20


def detect_format(
    chat_template: str | None,
    tokenizer: SpecialTokens,
    folder: Path | None = None,
    name: str | None = None,
) -> ReplyFormat:
    """How a model's replies are read.

    Args:
        chat_template: the source in use, if any.
        tokenizer: of the model.
        folder: of the checkpoint; its tokenizer_config.json may hold a ``response_template``. None for a GGUF file.
        name: of a format, instead of all this; ``none`` takes every reply as content.

    Raises:
        InvalidParameterError: no format has that name.
        CheckpointError: the checkpoint's own response template is not valid.
    """
    if name is not None:
        return (
            PlainFormat()
            if name.strip().lower() == NONE
            else _format(by_name(name), chat_template, tokenizer)
        )
    seen = guess(chat_template, lambda token: tokenizer.token_id(token) is not None)
    own = None if folder is None else _own_template(folder / "tokenizer_config.json")
    if own is not None:
        where = f"{folder}: response_template"
        ChatParser(own, where).load()
        wire = None if seen is None else wire_of(seen.wire)
        call_id = "long" if seen is None else seen.call_id
        reasons = _reasons(chat_template, tokenizer)
        return TemplateFormat("own", own, wire, tokenizer, reasons=reasons, call_id=call_id, where=where)
    return PlainFormat() if seen is None else _format(seen, chat_template, tokenizer)


def warm_up(reply_format: ReplyFormat) -> None:
    """Do what would make the first request wait; takes seconds where the parser has to be imported.

    Raises:
        BraidError: the format needs transformers, which is not installed.
    """
    if isinstance(reply_format, TemplateFormat):
        reply_format.warm_up()


def _format(data: FormatData, chat_template: str | None, tokenizer: SpecialTokens) -> TemplateFormat:
    return TemplateFormat(
        data.name,
        data.template,
        wire_of(data.wire),
        tokenizer,
        reasons=data.always_reasons or _reasons(chat_template, tokenizer),
        call_id=data.call_id,
        shell=data.shell,
    )


def _reasons(chat_template: str | None, tokenizer: SpecialTokens) -> bool:
    return _THINK in (chat_template or "") or tokenizer.token_id(_THINK) is not None


def _own_template(path: Path) -> dict[str, Any] | None:
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        return None
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {str(error)[:200]}") from error
    template = config.get("response_template") if isinstance(config, dict) else None
    if template is not None and not isinstance(template, dict):
        raise CheckpointError(f"{path}: response_template is not an object")
    return template
