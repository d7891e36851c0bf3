"""Where the deltas of one request wait for whoever asked. Event loop only: one thread puts and gets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from braid.core.errors import BraidError
from braid.core.request import Delta, FinishReason

_FAILED = (FinishReason.ERROR, FinishReason.ABORT)


class Inbox:
    """Any number of puts, one reader. A late reader gets all that came as one delta, so it catches up by itself."""

    __slots__ = ("_items", "_loop", "_waiter")

    def __init__(self) -> None:
        self._items: deque[Delta | BraidError] = deque()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Delta | BraidError) -> None:
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self) -> Delta:
        """What came since the last time, joined; waits if there is nothing.

        Raises:
            BraidError: one that was put, when everything before it has been given out.
        """
        items = self._items
        while not items:
            self._waiter = self._loop.create_future()
            await self._waiter
        first = items.popleft()
        if isinstance(first, BraidError):
            raise first
        if not items:
            return first
        return join([first, *self._more()])

    def _more(self) -> list[Delta]:
        """What can be joined to a delta before it. Failures stay apart: the tokens before them count."""
        more: list[Delta] = []
        while self._items:
            item = self._items[0]
            if isinstance(item, BraidError) or item.finish_reason in _FAILED:
                break
            more.append(item)
            self._items.popleft()
        return more


def join(deltas: Sequence[Delta]) -> Delta:
    """Consecutive deltas of one request as one."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    return deltas[-1]._replace(
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for entries in logprobs for entry in entries) if logprobs else None,
        num_cached_tokens=max(delta.num_cached_tokens for delta in deltas),
        prompt_logprobs=next(
            (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None
        ),
    )
