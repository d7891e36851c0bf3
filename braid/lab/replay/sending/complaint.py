"""What a server says is wrong, in one line."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_REASON = 300
"""Characters of a reason."""


def complaint(body: bytes) -> str:
    """What an error's body says, in one line; the body itself where it is not JSON of a known kind."""
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return excerpt(body)
    return complaint_of(said)


def complaint_of(said: Any) -> str:
    """The same of what is decoded already."""
    while isinstance(said, dict):
        inner = next((said[key] for key in ("error", "message", "detail") if said.get(key)), None)
        if inner is None:
            break
        said = inner
    return one_line(said if isinstance(said, str) else str(said))


def one_line(text: str) -> str:
    """With single spaces, and not too long."""
    text = " ".join(text[: 4 * MAX_REASON].split())
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def excerpt(data: bytes) -> str:
    """The beginning of something that makes no sense."""
    return one_line(data[:200].decode("utf-8", "replace")) or "(nothing)"
