"""A response as one object and as typed events: both come of the same items, so the last event has the whole answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from braid.server.dialects.responses_items import Event, OutputItems
from braid.server.errors import as_http_error
from braid.server.lifecycle import Usage
from braid.server.sse import named_event
from braid.server.turn import Turn, TurnDelta

_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
"""The API has a fixed list of codes for a response that failed; all others are the server's."""


class ResponseWriter:
    """Writes the reply of one turn.

    Args:
        echoed: fields of the answer that repeat the request.
        items: empty, to be filled.
    """

    def __init__(self, turn: Turn, items: OutputItems, echoed: Mapping[str, Any]) -> None:
        self._turn = turn
        self._items = items
        self._echoed = echoed
        self._sequence = 0
        self._status = "in_progress"
        self._completed_at: int | None = None
        self._error: dict[str, Any] | None = None

    async def answer(self) -> dict[str, Any]:
        """Everything at once; what the last of ``events`` carries."""
        async with aclosing(self._turn.deltas()) as deltas:
            async for delta in deltas:
                self._feed(delta)
        return self._response()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """created, in_progress, the lives of all items, and one of completed and incomplete.

        The first two wait for the reply to begin: a request that fails before is answered with an ordinary error.
        """
        async with aclosing(self._turn.deltas()) as deltas:
            async for delta in deltas:
                out = self._opening()
                out += b"".join(map(self._event, self._feed(delta)))
                if delta.finish_reason is not None:
                    out += self._lifecycle(self._status)
                yield out

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that broke off: ``response.failed``, with what there is of the reply."""
        if self._status != "in_progress":
            return b""
        opening = self._opening()
        answer = as_http_error(error)
        self._status = "failed"
        self._error = {"code": _ERROR_CODES.get(answer.status, "server_error"), "message": str(answer)}
        return opening + self._lifecycle("failed")

    def _feed(self, delta: TurnDelta) -> list[Event]:
        events = self._items.feed(delta.parts, delta.tokens)
        if delta.finish_reason is not None:
            self._status = "incomplete" if delta.finish_reason == "length" else "completed"
            if self._status == "completed":
                self._completed_at = int(time.time())
            events += self._items.finish(self._status)
        return events

    def _opening(self) -> bytes:
        if self._sequence:
            return b""
        status, self._status = self._status, "in_progress"
        opening = self._lifecycle("created") + self._lifecycle("in_progress")
        self._status = status
        return opening

    def _lifecycle(self, name: str) -> bytes:
        return self._event({"type": f"response.{name}", "response": self._response()})

    def _event(self, event: Event) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return named_event(event["type"], {"sequence_number": number, **event})

    def _response(self) -> dict[str, Any]:
        call = self._turn.generation.call
        begun = self._status == "in_progress"
        incomplete = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            "id": call.id,
            "object": "response",
            "created_at": call.created,
            "completed_at": self._completed_at,
            "status": self._status,
            "error": self._error,
            "incomplete_details": incomplete,
            "model": call.model,
            "output": self._items.values(),
            "usage": None if begun else usage_payload(self._turn.generation.usage),
            **self._echoed,
        }


def usage_payload(usage: Usage) -> dict[str, Any]:
    """The usage object of the Responses API: input tokens include the cached ones."""
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": usage.num_written_tokens,
        },
        "output_tokens": usage.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
    }
