"""Chat templates: a checkpoint's Jinja source turns messages into a prompt.

Rendered by minijinja as Hugging Face renders with jinja2 (``trim_blocks``, ``lstrip_blocks``, loop controls, Python's
string and dict methods, ``tojson``, ``raise_exception``, ``strftime_now``, ``{% generation %}``). A template comes
with a model file and is not trusted: fuel bounds its steps, a cap its output, checks the values it builds (see
``braid.text.template_guard``), and it reaches no Python object or file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import minijinja

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text.format_data import shown_in
from braid.text.messages import check_depth, prepare, wishes
from braid.text.template_guard import CHARGE, MAX_JOINS, guard, too_many_joins
from braid.text.tool_prompt import HERMES, shows_calls, tells_tools, write_tools
from braid.text.wire import example_of, wire_of

FUEL = 5_000_000
MAX_CHARS = 8_000_000
_MIN_FUEL = 1_000_000
_LITERAL_BUDGET = 750_000_000
_MAX_CALLS = 300_000
_MAX_NAMED = 1_000_000_000
"""Characters of all values that get names: what building them costs, some seconds."""
_TOO_MANY_STEPS = "the chat template took too many steps for these messages"
_NAME = "chat_template"
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_TAGS = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
_TAIL_MARK = "\ue0f0CONTINUE\ue0f1"
_RESERVED = frozenset(
    {CHARGE, "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)


class _RefusedError(Exception):
    """The template called ``raise_exception``, or its output is too long."""


class ChatTemplate:
    """A compiled chat template. Safe to use from several threads.

    Args:
        source: Jinja source; None for a checkpoint without one, whose ``render`` explains what to do.
        bos_token, eos_token: texts that the template may print.
        max_chars: the longest prompt it may make.
        now: the local time, for templates that print the date.

    Raises:
        CheckpointError: the source is not a valid template.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        max_chars: int = MAX_CHARS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._max_chars = max_chars
        self._wishes = wishes(source or "")
        self._example = _example(source or "")
        self._environment = None if source is None else _environment(source, max_chars, now)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation. It holds the special tokens already: encode it without adding any.

        Args:
            messages: OpenAI's form; content is text or a list of text parts.
            tools: OpenAI's tool descriptions.
            add_generation_prompt: end with the header of an assistant's turn.
            continue_final_message: leave the last message open, for the model to go on with its text.
            kwargs: further variables of the template, such as ``enable_thinking``.

        Raises:
            InvalidParameterError: the messages do not fit the template, or rendering it exceeds the limits.
        """
        if self._environment is None:
            raise InvalidParameterError(
                "this model has no chat template, so it cannot take messages: use /v1/completions, or start the server "
                "with --chat-template FILE",
                param="messages",
                code="no_chat_template",
            )
        prepared = prepare(messages, self._wishes)
        check_depth(tools or [], "tools")
        if self.source is not None and not tells_tools(self.source):
            prepared, tools = write_tools(prepared, tools, self.source, self._example), None
        if continue_final_message:
            _mark_tail(prepared[-1])
        variables = {**self._variables(kwargs), "messages": prepared, "tools": list(tools) if tools else None}
        text = self._render(
            add_generation_prompt=add_generation_prompt and not continue_final_message, **variables
        )
        return _cut_tail(text, prepared[-1]) if continue_final_message else text

    def _variables(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        taken = _RESERVED & set(kwargs)
        if taken:
            raise InvalidParameterError(
                f"chat_template_kwargs may not set {', '.join(sorted(taken))}", param="chat_template_kwargs"
            )
        check_depth(kwargs, "chat_template_kwargs")
        tokens = {name: token for name, token in self._tokens.items() if token is not None}
        return {"documents": None, **tokens, **kwargs}

    def _render(self, **variables: Any) -> str:
        assert self._environment is not None
        try:
            text = self._environment.render_template(_NAME, **variables)
        except Exception as error:  # whatever goes wrong in a template is about this request only
            raise InvalidParameterError(_explain(error), param="messages") from error
        if len(text) > self._max_chars:
            raise InvalidParameterError(_too_long(self._max_chars), param="messages")
        return text


def _example(source: str) -> str:
    """How the model is told to write a call, where its template does not say."""
    shown = shown_in(source) if shows_calls(source) else None
    wire = None if shown is None else wire_of(shown.wire)
    return HERMES if wire is None else example_of(wire)


def _environment(source: str, max_chars: int, now: Callable[[], datetime]) -> minijinja.Environment:
    if too_many_joins(source):
        raise CheckpointError(f"chat template joins more than {MAX_JOINS} values in one expression")
    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=_fuel(source),
        debug=False,
        filters={"tojson": _json_filter(max_chars)},
        globals={
            "raise_exception": _raise,
            "strftime_now": lambda form: now().strftime(form),
            CHARGE: _value_counter(max_chars),
        },
        finalizer=_counter(max_chars),
        auto_escape_callback=lambda name: False,
    )
    try:
        # The block marks assistant text for training; rendering treats it as plain.
        environment.add_template(_NAME, guard(_GENERATION.sub(_plain_block, source)))
    except minijinja.TemplateError as error:
        raise CheckpointError(f"chat template is not valid: {_describe(error)}") from error
    return environment


def _plain_block(match: re.Match[str]) -> str:
    return f"{match[1]}{'endif' if match[2] else 'if true'}{match[3]}"


def _fuel(source: str) -> int:
    """Steps a render may take; fewer where each could print a long literal, which nothing else counts."""
    longest = max(len(text) for text in _TAGS.split(source))
    return max(_MIN_FUEL, min(FUEL, _LITERAL_BUDGET // max(longest, 1)))


def _counter(max_chars: int) -> Callable[..., Any]:
    """A finalizer that counts what is printed and stops the render above the cap."""

    @minijinja.pass_state
    def count(state: Any, value: Any) -> Any:
        text = repr(value) if isinstance(value, float) else value
        _charge(state, len(text) if isinstance(text, str) else 0, max_chars)
        return text

    return count


def _value_counter(max_chars: int) -> Callable[..., bool]:
    """What the template tells of each value it names: no value, nor all together, may become too long."""

    @minijinja.pass_state
    def count(state: Any, length: int) -> bool:
        named = state.get_temp("named", 0) + length
        state.set_temp("named", named)
        _charge(state, 0, max_chars)
        if length > max_chars or named > _MAX_NAMED:
            raise _RefusedError(_too_long(max_chars))
        return False

    return count


def _charge(state: Any, num_chars: int, max_chars: int) -> None:
    """Count made text, and calls, against their caps: a call into Python costs far more than its fuel."""
    made = state.get_temp("made", 0) + num_chars
    calls = state.get_temp("calls", 0) + 1
    state.set_temp("made", made)
    state.set_temp("calls", calls)
    if made > max_chars:
        raise _RefusedError(_too_long(max_chars))
    if calls > _MAX_CALLS:
        raise _RefusedError(_TOO_MANY_STEPS)


def _json_filter(max_chars: int) -> Callable[..., str]:
    @minijinja.pass_state
    def to_json(
        state: Any,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Sequence[str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Hugging Face's filter: no HTML escapes."""
        pair = None if separators is None else (separators[0], separators[1])
        text = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
        )
        _charge(state, len(text), max_chars)
        return text

    return to_json


def _raise(message: str) -> None:
    raise _RefusedError(str(message))


def _too_long(max_chars: int) -> str:
    return f"messages make a prompt of more than {max_chars} characters"


def _explain(error: Exception) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    if isinstance(error, minijinja.TemplateError):
        if error.kind == "OutOfFuel":
            return _TOO_MANY_STEPS
        return f"the chat template cannot render these messages: {_describe(error)}"
    return f"the chat template cannot render these messages: {type(error).__name__}: {str(error)[:200]}"


def _describe(error: minijinja.TemplateError) -> str:
    line = f" (line {error.line})" if error.line else ""
    return f"{str(error.detail or error.message)[:200]}{line}"


def _mark_tail(message: dict[str, Any]) -> None:
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _TAIL_MARK
    elif content:
        content[-1]["text"] += _TAIL_MARK
    else:
        raise InvalidParameterError("the final message has no text to continue", param="messages")


def _cut_tail(text: str, message: Mapping[str, Any]) -> str:
    """The prompt up to the mark that ends the final message's text."""
    at = text.rfind(_TAIL_MARK)
    if at < 0:
        raise InvalidParameterError(
            "the chat template does not show the final message's text", param="messages"
        )
    return text[:at]
