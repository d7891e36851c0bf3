"""Request fields of the OpenAI dialect. Types are strict; ranges are checked where a value is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from braid.core.errors import InvalidParameterError
from braid.core.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, SamplingParams
from braid.server.dialects.fields import Items as Items
from braid.server.dialects.fields import ProgramFields, refuse
from braid.server.dialects.structured import StructuredFields
from braid.server.guard.body import echo
from braid.server.slo import SloFields

_TOKEN_ID = re.compile(r"[0-9]{1,10}")
_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
)
MAX_STOP_CHARS = 512
"""Every sequence of a request keeps a table of this length for each stop string."""
MAX_STOP_TOKEN_IDS = 128
MAX_PRIORITY = 2**31 - 1
MAX_METADATA = 16
MAX_KEY = 64
MAX_VALUE = 512
MAX_SAFETY_IDENTIFIER = 128
MAX_CACHE_SALT = 256
UNSUPPORTED = (
    "allowed_token_ids",
    "audio",
    "bad_words",
    "length_penalty",
    "logits_processors",
    "spaces_between_special_tokens",
    "suffix",
    "truncate_prompt_tokens",
    "use_beam_search",
    "web_search_options",
)
"""Fields that would change the output and that Braid cannot act on: refused, not ignored."""
TEMPLATE_UNSUPPORTED = ("chat_template", "documents", "truncate_prompt_tokens")
CHAT_UNSUPPORTED = ("chat_template", "documents", "echo")
COMPLETION_TOKENS = 16
"""Output of a text completion that sets no limit, as everywhere; a chat goes on to the end of the context."""


def check_common(priority: int | None, cache_salt: str | None) -> None:
    """Raises InvalidParameterError for what no endpoint takes."""
    if priority is not None and not 0 <= priority <= MAX_PRIORITY:
        message = (
            f"priority must be in [0, {MAX_PRIORITY}], got {echo(priority)}: 0 is first-come first-served, "
            "higher numbers let others go first, and nobody goes before others"
        )
        raise InvalidParameterError(message, param="priority")
    if len(cache_salt or "") > MAX_CACHE_SALT:
        message = f"cache_salt may have at most {MAX_CACHE_SALT} characters"
        raise InvalidParameterError(message, param="cache_salt")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class RequestFields(StructuredFields, ProgramFields, SloFields):
    """What chat and completions have in common; None always means the default."""

    model_config = ConfigDict(strict=True)
    default_max_tokens: ClassVar[int | None] = None

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    best_of: int | None = None
    # Accepted without effect on the output.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    store: bool | None = None

    def sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        max_stop: int,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """What the engine is asked for; absent fields take the engine's defaults."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > max_stop:
            raise InvalidParameterError(
                f"stop has {len(stop)} strings, at most {max_stop} are allowed", param="stop"
            )
        if max(map(len, stop), default=0) > MAX_STOP_CHARS:
            message = f"a stop string may have at most {MAX_STOP_CHARS} characters"
            raise InvalidParameterError(message, param="stop")
        stop_ids = tuple(self.stop_token_ids or ())
        if len(stop_ids) > MAX_STOP_TOKEN_IDS:
            message = f"stop_token_ids has {len(stop_ids)} ids, at most {MAX_STOP_TOKEN_IDS} are allowed"
            raise InvalidParameterError(message, param="stop_token_ids")
        given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        return SamplingParams(
            **given,
            stop=stop,
            stop_token_ids=stop_ids,
            logit_bias=_logit_bias(self.logit_bias or {}),
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if prompt_logprobs is None else prompt_logprobs,
        )

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what cannot be had, and what is beyond public limits."""
        refuse(UNSUPPORTED, body)
        if self.stream_options is not None and not self.stream:
            raise InvalidParameterError("stream_options needs stream to be true", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidParameterError("prompt_logprobs needs stream to be false", param="prompt_logprobs")
        if self.best_of is not None and self.best_of != (self.n or 1):
            message = f"best_of must equal n (all outputs are sent), got {echo(self.best_of)}"
            raise InvalidParameterError(message, param="best_of")
        check_common(self.priority, self.cache_salt)
        if self.top_k is not None and not -(2**31) <= self.top_k < 2**31:
            raise InvalidParameterError(
                f"top_k must be a 32-bit integer, got {echo(self.top_k)}", param="top_k"
            )
        if len(self.metadata or ()) > MAX_METADATA:
            raise InvalidParameterError(f"metadata may have at most {MAX_METADATA} pairs", param="metadata")
        if any(len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in (self.metadata or {}).items()):
            message = f"metadata may have keys of {MAX_KEY} and values of {MAX_VALUE} characters at most"
            raise InvalidParameterError(message, param="metadata")
        if len(self.safety_identifier or "") > MAX_SAFETY_IDENTIFIER:
            message = f"safety_identifier may have at most {MAX_SAFETY_IDENTIFIER} characters"
            raise InvalidParameterError(message, param="safety_identifier")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk tells the usage so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class TemplateFields(BaseModel):
    """What a chat template is rendered from, beside the messages."""

    model_config = ConfigDict(strict=True)

    tools: Items[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def template_variables(self) -> dict[str, Any]:
        """Further variables of the template.

        Raises:
            InvalidParameterError: fields that exclude each other.
        """
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise InvalidParameterError(message, param="continue_final_message")
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            thinks = self.reasoning_effort != "none"
            for name, value in (
                ("reasoning_effort", self.reasoning_effort),
                ("enable_thinking", thinks),
                ("thinking", thinks),
            ):
                variables.setdefault(name, value)
        return variables


class ChatRequest(RequestFields, TemplateFields):
    messages: Items[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Items[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: Items[str] | None = None
    # Accepted without effect on the output.
    verbosity: Literal["low", "medium", "high"] | None = None
    prediction: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None

    def params(self, max_stop: int) -> SamplingParams:
        max_tokens = self.max_tokens
        if self.max_completion_tokens is not None:
            max_tokens = self.max_completion_tokens
            if max_tokens < 1:
                message = f"max_completion_tokens must be an integer >= 1 or null, got {echo(max_tokens)}"
                raise InvalidParameterError(message, param="max_completion_tokens")
        return self.sampling_params(max_tokens=max_tokens, logprobs=self._logprobs(), max_stop=max_stop)

    def _logprobs(self) -> int | None:
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise InvalidParameterError("top_logprobs needs logprobs to be true", param="top_logprobs")
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                message = f"top_logprobs must be in [0, {MAX_LOGPROBS}], got {echo(self.top_logprobs)}"
                raise InvalidParameterError(message, param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self, body: Mapping[str, Any]) -> None:
        super().check(body)
        refuse(CHAT_UNSUPPORTED, body)
        for older, newer in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, older) is not None and getattr(self, newer) is not None:
                raise InvalidParameterError(f"{older} and {newer} exclude each other", param=older)
        if self.modalities not in (None, ["text"]):
            raise InvalidParameterError(
                "modalities other than ['text'] are not supported", param="modalities"
            )


class CompletionRequest(RequestFields):
    default_max_tokens: ClassVar[int | None] = COMPLETION_TOKENS

    prompt: Any = None
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    @property
    def prompt_only(self) -> bool:
        """Whether only the prompt and its log-probabilities are wanted."""
        return self.max_tokens == 0 and bool(self.echo)

    def params(self, max_stop: int) -> SamplingParams:
        """An engine makes one token at least; whoever wants none does not get it shown."""
        wanted = [count for count in (self.prompt_logprobs, self._echoed_logprobs()) if count is not None]
        return self.sampling_params(
            max_tokens=1 if self.prompt_only else self.max_tokens,
            logprobs=self.logprobs,
            max_stop=max_stop,
            prompt_logprobs=max(wanted, default=None),
        )

    def _echoed_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None


class TokenizeRequest(TemplateFields):
    messages: Items[dict[str, Any]] | None = None
    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what would change the tokens."""
        refuse(TEMPLATE_UNSUPPORTED, body)


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    model: str | None = None
    tokens: Items[int]


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    if len(bias) > MAX_LOGIT_BIAS:
        message = f"logit_bias has {len(bias)} entries, at most {MAX_LOGIT_BIAS} are allowed"
        raise InvalidParameterError(message, param="logit_bias")
    for key in bias:
        if not _TOKEN_ID.fullmatch(key):
            message = f"logit_bias must be keyed by token ids, got {echo(key)}"
            raise InvalidParameterError(message, param="logit_bias")
    return {int(key): value for key, value in bias.items()}
