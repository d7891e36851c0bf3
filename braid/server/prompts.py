"""From messages, text or token ids to prompt token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.server.config import ServerContext
from braid.server.encode import PromptEncoder, Tokens, check_length, engine_info
from braid.server.guard.body import echo
from braid.server.turn import TurnRequest
from braid.text.tools import Tool

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_PROMPT_LOGPROBS = 1 << 20
"""Log-probabilities of prompt tokens in one answer: each takes some 500 bytes until it is sent."""
RENDER_ARGUMENTS = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"})


def render_turn(context: ServerContext, wanted: TurnRequest) -> str:
    """The prompt of a conversation; the template writes the special tokens.

    Raises:
        InvalidParameterError: a message is malformed, or the template refuses the conversation.
    """
    template = context.chat_template
    if template is None:
        raise InvalidParameterError(
            "this model has no chat template; use /v1/completions", param=wanted.param
        )
    if RENDER_ARGUMENTS.intersection(wanted.template):
        message = f"chat_template_kwargs must not set {', '.join(sorted(RENDER_ARGUMENTS))}"
        raise InvalidParameterError(message, param="chat_template_kwargs")
    shown = () if wanted.tool_choice.mode == "none" else wanted.tools
    return template.render(
        wanted.messages,
        tools=[tool.as_openai() for tool in shown] or None,
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=wanted.continue_final_message,
        **wanted.template,
    )


def check_messages(context: ServerContext, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    limits = context.config
    if not 1 <= len(messages) <= limits.max_messages:
        message = f"messages must have 1 to {limits.max_messages} entries, got {len(messages)}"
        raise InvalidParameterError(message, param="messages")
    if len(tools) > limits.max_tools:
        message = f"tools has {len(tools)} entries, at most {limits.max_tools} are allowed"
        raise InvalidParameterError(message, param="tools")
    for index, entry in enumerate(messages):
        role = entry.get("role")
        if role not in ROLES:
            message = f"messages.{index}.role must be one of {', '.join(ROLES)}, got {echo(role)}"
            raise InvalidParameterError(message, param="messages")
        call = entry.get("tool_call_id")
        if call is not None and not isinstance(call, str):
            message = f"messages.{index}.tool_call_id must be a string, got {echo(call)}"
            raise InvalidParameterError(message, param="messages")
        if entry.get("content") is None and role != "assistant":
            raise InvalidParameterError(f"messages.{index}.content is missing", param="messages")


def completion_prompts(
    context: ServerContext,
    encoder: PromptEncoder,
    prompt: object,
    add_special_tokens: bool,
    *,
    param: str = "prompt",
    limit: int | None = None,
) -> tuple[Tokens, ...]:
    """A string, a list of strings, token ids, or a list of token-id lists; at most ``limit`` of them.

    Raises:
        InvalidParameterError: another shape, no prompt at all, too many, or one too long for the context.
    """
    one = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int)
    entries = [prompt] if one else prompt
    most = limit or context.config.max_prompts
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        message = f"{param} must be a string, token ids, or a list of 1 to {most} of either"
        raise InvalidParameterError(message, param=param)
    room = engine_info(context).max_model_len
    return tuple(_prompt(encoder, entry, param, add_special_tokens, room) for entry in entries)


def _prompt(
    encoder: PromptEncoder, entry: object, param: str, add_special_tokens: bool, max_model_len: int
) -> Tokens:
    """One prompt. Its length is checked here, before anything looks at its ids or at the prompts behind it."""
    if isinstance(entry, str):
        if not entry:
            raise InvalidParameterError(f"{param} must not be empty", param=param)
        tokens = encoder.encode(entry, param, add_special_tokens=add_special_tokens)
        check_length(len(tokens), max_model_len, param)
        return tokens
    if isinstance(entry, list) and entry:
        check_length(len(entry), max_model_len, param)
        if set(map(type, entry)) == {int}:
            return tuple(entry)
    message = f"{param} must be non-empty strings or non-empty lists of token ids"
    raise InvalidParameterError(message, param=param)


def check_sequences(num_prompts: int, n: int, limit: int) -> None:
    """Raises InvalidParameterError where one request asks for more than ``limit`` outputs."""
    if num_prompts * n > limit:
        message = (
            f"{num_prompts} prompts with n {n} make {num_prompts * n} outputs, at most {limit} are allowed"
        )
        raise InvalidParameterError(message, param="n")


def check_prompt_logprobs(num_tokens: int, count: int) -> None:
    """Raises InvalidParameterError where so many tokens with ``count`` alternatives each would fill the memory."""
    if num_tokens * (count + 1) > MAX_PROMPT_LOGPROBS:
        message = (
            f"prompt_logprobs {count} of {num_tokens} prompt tokens (once for each output) make "
            f"{num_tokens * (count + 1)} entries, at most {MAX_PROMPT_LOGPROBS} are allowed in one request"
        )
        raise InvalidParameterError(message, param="prompt_logprobs")


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidParameterError for the first id outside ``[0, vocab_size)``."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        bad = next(token for token in ids if not 0 <= token < vocab_size)
        message = f"{param} has token id {echo(bad)} outside the vocabulary [0, {vocab_size})"
        raise InvalidParameterError(message, param=param)
