"""Where in a prompt's tokens the prefixes end that a client marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from braid.core.errors import InvalidParameterError
from braid.server.programs.intent import MAX_BOUNDARIES, entry_marks
from braid.server.turn import TurnRequest

Tokens = tuple[int, ...]
Render = Callable[[TurnRequest], str]
Encode = Callable[[str], Tokens]


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
    wanted: TurnRequest, prompt: Tokens, text: str, *, render: Render, encode: Encode
) -> tuple[int, ...]:
    """Prompt lengths, in tokens, at which the marked prefixes of a conversation end, rising.

    The leading messages are rendered alone; as far as their text begins the prompt's text, it is tokenised piece by
    piece and compared with the prompt, so that a boundary never lies behind the prefix it stands for.
    """
    ends: list[int] = []
    num_tokens, num_chars = 0, 0
    for number in marked_messages(wanted):
        shared = _shared_text(_render_prefix(wanted, number, render), text)
        if shared > num_chars:
            piece = encode(text[num_chars:shared])
            same = shared_length(piece, prompt[num_tokens : num_tokens + len(piece)])
            num_tokens, num_chars = num_tokens + same, shared
            if same < len(
                piece
            ):  # the cut fell inside a token: whatever follows is reckoned from here no more
                ends.append(num_tokens)
                break
        ends.append(num_tokens)
    return tuple(sorted({end for end in ends if end}))


def _render_prefix(wanted: TurnRequest, number: int, render: Render) -> str:
    """Empty where the template takes no such beginning of a conversation."""
    leading = replace(
        wanted, messages=wanted.messages[:number], add_generation_prompt=False, continue_final_message=False
    )
    try:
        return render(leading)
    except InvalidParameterError:
        return ""


def _shared_text(prefix: str, text: str) -> int:
    return len(prefix) if text.startswith(prefix) else shared_length(prefix, text)


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many leading items two sequences share."""
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
