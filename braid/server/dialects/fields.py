"""What the dialects do alike with request fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, FailFast

from braid.core.errors import InvalidParameterError
from braid.server.observe.metrics import ServerMetrics

Item = TypeVar("Item")


class _FirstError(FailFast):
    """One error says enough: a list of a million wrong entries would else become a million errors."""

    __hash__ = object.__hash__  # for annotations that join the list with None


Items = Annotated[list[Item], _FirstError()]


class ProgramFields(BaseModel):
    """Fields that say which program a request belongs to, and what its client wishes for the time after it.

    They are read and checked in ``braid.server.programs``; here they only count as known.
    """

    session_id: Any = None
    parent_session_id: Any = None
    session_final: Any = None
    program_id: Any = None
    job_id: Any = None
    is_last_step: Any = None
    this_func_call: Any = None
    last_func_call: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    cache_control: Any = None
    agent_hint: Any = None
    agent_hints: Any = None
    nvext: Any = None
    vllm_xargs: Any = None
    braid: Any = None


CHANGES_OUTPUT = frozenset(
    {
        "chat_template_caps",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_range",
        "enable_thinking",
        "epsilon_cutoff",
        "eta_cutoff",
        "format",
        "logit_processors",
        "lora_path",
        "max_thinking_tokens",
        "min_keep",
        "mirostat",
        "mirostat_eta",
        "mirostat_mode",
        "mirostat_tau",
        "mm_processor_kwargs",
        "moderation",
        "n_keep",
        "n_predict",
        "no_repeat_ngram_size",
        "no_stop_trim",
        "num_ctx",
        "num_predict",
        "options",
        "plugins",
        "reasoning",
        "repeat_last_n",
        "repeat_penalty",
        "samplers",
        "smoothing_factor",
        "stop_regex",
        "tfs_z",
        "thinking",
        "thinking_budget",
        "thinking_token_budget",
        "top_a",
        "top_n_sigma",
        "transforms",
        "typical",
        "typical_p",
        "verbosity",
        "xtc_probability",
        "xtc_threshold",
    }
)
"""Fields of other servers that change what they answer, and that do nothing here."""
ACCEPTED_UNHEARD = frozenset({"moderation", "verbosity"})
"""Those of them whose types are checked."""
_DEFAULTS: Mapping[str, object] = {
    "length_penalty": 1.0,
    "repeat_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "typical_p": 1.0,
    "verbosity": "medium",
}


_MAX_NAMED = 64
"""In a header: clients take no more than 8 to 16 KiB of them."""


def note_ignored(metrics: ServerMetrics, fields: BaseModel, body: Mapping[str, Any]) -> list[str]:
    """Count the fields of a body that nobody knows; returns the ignored ones that would have changed the output."""
    known = {info.alias or name for name, info in type(fields).model_fields.items()}
    metrics.ignored_fields.inc(sum(name not in known for name in body))
    heard = known - ACCEPTED_UNHEARD
    return [name for name, value in body.items() if name in CHANGES_OUTPUT - heard and asks(name, value)]


def warning_header(ignored: Sequence[str]) -> dict[str, str]:
    """Agents send what only their own servers know: a refusal would break them, silence would mislead."""
    named = list(ignored[:_MAX_NAMED])
    if len(ignored) > _MAX_NAMED:
        named.append(f"{len(ignored) - _MAX_NAMED} more")
    return {"warning": f'199 braid "ignored: {", ".join(named)}"'} if ignored else {}


def refuse(names: Iterable[str], body: Mapping[str, Any]) -> None:
    """Raises InvalidParameterError for the first of ``names`` that asks for something."""
    for name in names:
        if asks(name, body.get(name)):
            raise InvalidParameterError(f"{name} is not supported", param=name)


def asks(name: str, value: object) -> bool:
    """Whether a field asks for something.

    False, null, empty text and empty lists do not, nor do defaults; an empty object may (any JSON, a search).
    """
    return value is not None and value is not False and value not in ("", [], _DEFAULTS.get(name))
