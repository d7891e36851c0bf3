"""Where in a prompt's tokens the prefixes end that a client marked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from braid.core.errors import InvalidParameterError
from braid.server.programs.intent import MAX_BOUNDARIES, entry_marks
from braid.server.turn import TurnRequest

Tokens = tuple[int, ...]
Render = Callable[[TurnRequest], str]
TokenBytes = Callable[[int], bytes]


def marked_messages(wanted: TurnRequest) -> tuple[int, ...]:
    """How many leading messages each marked prefix has, rising; the last ``MAX_BOUNDARIES`` of them.

    What the dialect found counts; without that, marks that still stand in the messages.
    """
    marks = wanted.breakpoints or tuple(
        number for number, message in enumerate(wanted.messages, 1) if entry_marks(message)
    )
    inside = sorted({number for number in marks if 0 < number <= len(wanted.messages)})
    return tuple(inside[-MAX_BOUNDARIES:])


def boundaries(
    wanted: TurnRequest, prompt: Tokens, text: str, *, render: Render, token_bytes: TokenBytes
) -> tuple[int, ...]:
    """Prompt lengths, in tokens, at which the marked prefixes of a conversation end, rising.

    The leading messages are rendered alone. As far as their text begins the prompt's text, tokens are counted by the
    bytes that they stand for, and one that a boundary cuts is not: tokenising prefixes again would cost as much as the
    prompt did.
    """
    rendered = [_render_prefix(wanted, number, render) for number in marked_messages(wanted)]
    places = list(accumulate(len(token_bytes(token)) for token in prompt))
    ends = {bisect_right(places, len(text[: _num_shared(prefix, text)].encode())) for prefix in rendered}
    return tuple(sorted(ends - {0}))


def _render_prefix(wanted: TurnRequest, number: int, render: Render) -> str:
    """Empty where the template takes no such beginning of a conversation."""
    leading = replace(
        wanted, messages=wanted.messages[:number], add_generation_prompt=False, continue_final_message=False
    )
    try:
        return render(leading)
    except InvalidParameterError:
        return ""


def _num_shared(one: str, other: str) -> int:
    """Leading characters that are equal."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # one[:low] is shared, one[:high] is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
