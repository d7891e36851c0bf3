"""Request fields of the Responses API. Types are strict; ranges are checked where a value is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from braid.core.constraint import Constraint
from braid.core.errors import InvalidParameterError
from braid.core.sampling import MAX_LOGPROBS, SamplingParams
from braid.server.dialects.fields import refuse
from braid.server.dialects.schemas import TEMPLATE_UNSUPPORTED, Items, RequestFields, TemplateFields
from braid.server.dialects.structured import format_constraint
from braid.server.errors import HttpError
from braid.server.guard.body import echo

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
_ELSEWHERE = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "n": "no such field",
    "prompt_logprobs": "no such field",
    "return_token_ids": "no such field",
    "response_format": "text.format",
}
"""Fields of chat completions that a client may mistake for ours: ignoring them would change the output unseen."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ReasoningFields(BaseModel):
    model_config = ConfigDict(strict=True)

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None


class TextFields(BaseModel):
    model_config = ConfigDict(strict=True)

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(RequestFields, TemplateFields):
    """``POST /v1/responses``; None always means the default."""

    input: str | Items[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    reasoning: ReasoningFields | None = None
    text: TextFields | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = None
    include: Items[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    previous_response_id: str | None = None
    prompt: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _take_effort(self) -> ResponsesRequest:
        if self.reasoning is not None and self.reasoning.effort is not None:
            self.reasoning_effort = self.reasoning.effort
        return self

    def params(self, max_stop: int) -> SamplingParams:
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            message = f"max_output_tokens must be an integer >= 1 or null, got {echo(self.max_output_tokens)}"
            raise InvalidParameterError(message, param="max_output_tokens")
        return self.sampling_params(
            max_tokens=self.max_output_tokens, logprobs=self._logprobs(), max_stop=max_stop
        )

    def _logprobs(self) -> int | None:
        top = self.top_logprobs
        if top is not None and not 0 <= top <= MAX_LOGPROBS:
            message = f"top_logprobs must be in [0, {MAX_LOGPROBS}], got {echo(top)}"
            raise InvalidParameterError(message, param="top_logprobs")
        return (top or 0) if top or self.wants(LOGPROBS) else None

    def answer_constraint(self) -> Constraint | None:
        """What the text of the answer must look like."""
        form = None if self.text is None else self.text.format
        wanted, other = format_constraint(form, "text.format"), self.constraint()
        if wanted is not None and other is not None:
            message = f"text.format and {other.param} exclude each other"
            raise InvalidParameterError(message, param=other.param)
        return wanted or other

    def wants(self, extra: str) -> bool:
        """Whether ``include`` names it."""
        return extra in (self.include or ())

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what cannot be had: above all, what needs an answer that was kept."""
        super().check(body)
        refuse(TEMPLATE_UNSUPPORTED, body)
        for name, instead in _ELSEWHERE.items():
            if body.get(name) is not None and (name, body[name]) != ("n", 1):
                message = f"{name} is a field of other endpoints; this one takes {instead}"
                raise InvalidParameterError(message, param=name)
        if self.previous_response_id is not None:
            message = "no earlier response is stored here; send the whole conversation as input"
            raise HttpError(404, message, param="previous_response_id", code="previous_response_not_found")
        if self.background:
            message = "background responses are not supported; leave background out"
            raise InvalidParameterError(message, param="background")
        if self.conversation is not None:
            message = "conversations are not stored here; send the whole conversation as input"
            raise InvalidParameterError(message, param="conversation")
        if self.prompt is not None:
            message = "prompt templates are not stored here; send instructions and input"
            raise InvalidParameterError(message, param="prompt")
        if self.max_tool_calls is not None and self.max_tool_calls < 1:
            message = f"max_tool_calls must be an integer >= 1 or null, got {echo(self.max_tool_calls)}"
            raise InvalidParameterError(message, param="max_tool_calls")

    def ignored(self) -> list[str]:
        """Fields without effect that would have changed the output on another server."""
        return ["truncation"] if self.truncation == "auto" else []
