"""From messages, text or token ids to prompt token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from braid.core.errors import EngineDeadError, InvalidParameterError
from braid.engine.protocol import EngineInfo
from braid.server.body import echo
from braid.server.config import ServerContext
from braid.server.schemas import TemplateFields

Result = TypeVar("Result")
Message = dict[str, Any]
Tokens = tuple[int, ...]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
RENDER_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


async def off_loop(context: ServerContext, size: int, work: Callable[[], Result]) -> Result:
    """Run ``work`` here if the request is small, else in a worker thread: the tokeniser releases the interpreter."""
    if size <= context.config.offload_bytes:
        return work()
    return await asyncio.to_thread(work)


def engine_info(context: ServerContext) -> EngineInfo:
    """Raises EngineDeadError as long as the engine has not been ready once."""
    info = context.engine.info
    if info is None:
        raise EngineDeadError("the engine is still loading its model")
    return info


def chat_tokens(context: ServerContext, messages: Sequence[Message], fields: TemplateFields) -> Tokens:
    """Render the conversation and tokenise it; the template writes the special tokens.

    Raises:
        InvalidParameterError: a message is malformed, or the template refuses the conversation.
    """
    text = render_chat(context, messages, fields)
    return tuple(context.tokenizer.encode(text, add_special_tokens=False))


def render_chat(context: ServerContext, messages: Sequence[Message], fields: TemplateFields) -> str:
    template = context.chat_template
    if template is None:
        raise InvalidParameterError("this model has no chat template; use /v1/completions", param="messages")
    open_ended = bool(fields.continue_final_message)
    if open_ended and fields.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidParameterError(message, param="continue_final_message")
    kwargs = dict(fields.chat_template_kwargs or {})
    if RENDER_ARGUMENTS.intersection(kwargs):
        message = f"chat_template_kwargs must not set {', '.join(sorted(RENDER_ARGUMENTS))}"
        raise InvalidParameterError(message, param="chat_template_kwargs")
    if fields.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", fields.reasoning_effort)
    return template.render(
        messages,
        tools=_tools(fields.tools),
        add_generation_prompt=fields.add_generation_prompt is not False,
        continue_final_message=open_ended,
        **kwargs,
    )


def check_messages(
    context: ServerContext, messages: Sequence[Message], tools: Sequence[Message] | None
) -> None:
    limits = context.config
    if not 1 <= len(messages) <= limits.max_messages:
        message = f"messages must have 1 to {limits.max_messages} entries, got {len(messages)}"
        raise InvalidParameterError(message, param="messages")
    if len(tools or ()) > limits.max_tools:
        message = f"tools has {len(tools or ())} entries, at most {limits.max_tools} are allowed"
        raise InvalidParameterError(message, param="tools")
    for index, entry in enumerate(messages):
        role = entry.get("role")
        if role not in ROLES:
            message = f"messages.{index}.role must be one of {', '.join(ROLES)}, got {echo(role)}"
            raise InvalidParameterError(message, param="messages")
        if entry.get("content") is None and role != "assistant":
            raise InvalidParameterError(f"messages.{index}.content is missing", param="messages")


def _tools(tools: Sequence[Message] | None) -> list[Message] | None:
    """Function tools only: agents send other types, and a refusal would break them."""
    known = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            continue
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            message = f"tools.{index}.function must be an object with a name"
            raise InvalidParameterError(message, param="tools")
        known.append(tool)
    return known or None


def dropped_tools(tools: Sequence[Message] | None) -> list[str]:
    """Where tools stand that are not functions."""
    return [f"tools.{index}" for index, tool in enumerate(tools or ()) if tool.get("type") != "function"]


def completion_prompts(
    context: ServerContext, prompt: object, add_special_tokens: bool
) -> tuple[Tokens, ...]:
    """A string, a list of strings, token ids, or a list of token-id lists.

    Raises:
        InvalidParameterError: another shape, no prompt at all, or too many.
    """
    one = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int)
    entries = [prompt] if one else prompt
    limit = context.config.max_prompts
    if not isinstance(entries, list) or not 1 <= len(entries) <= limit:
        message = f"prompt must be a string, token ids, or a list of 1 to {limit} of either"
        raise InvalidParameterError(message, param="prompt")
    return tuple(_prompt(context, entry, add_special_tokens) for entry in entries)


def _prompt(context: ServerContext, entry: object, add_special_tokens: bool) -> Tokens:
    if isinstance(entry, str):
        if not entry:
            raise InvalidParameterError("prompt must not be empty", param="prompt")
        return tuple(context.tokenizer.encode(entry, add_special_tokens=add_special_tokens))
    if isinstance(entry, list) and entry and set(map(type, entry)) == {int}:
        return tuple(entry)
    message = "prompt must be non-empty strings or non-empty lists of token ids"
    raise InvalidParameterError(message, param="prompt")


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidParameterError for the first id outside ``[0, vocab_size)``."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        bad = next(token for token in ids if not 0 <= token < vocab_size)
        message = f"{param} has token id {echo(bad)} outside the vocabulary [0, {vocab_size})"
        raise InvalidParameterError(message, param=param)


def check_context(prompt: Tokens, max_tokens: int | None, limit: int, param: str) -> int:
    """Tokens that may be generated: ``max_tokens``, or what the context leaves.

    Raises:
        InvalidParameterError: ``context_length_exceeded`` naming what was asked and what is allowed.
    """
    remaining = limit - len(prompt)
    if not prompt:
        raise InvalidParameterError("the prompt has no tokens", param=param)
    if remaining < max(1, max_tokens or 1):
        wanted = f" and max_tokens {max_tokens}" if max_tokens is not None else ""
        total = len(prompt) + (max_tokens or 1)
        message = (
            f"the model's context is {limit} tokens, but the prompt has {len(prompt)} tokens{wanted}: "
            f"{total} tokens are asked for"
        )
        raise InvalidParameterError(message, param=param, code="context_length_exceeded")
    return remaining if max_tokens is None else max_tokens
