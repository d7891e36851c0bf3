from __future__ import annotations

import asyncio

import pytest

from braid.core.errors import EngineDeadError
from braid.core.request import Delta, FinishReason, PhaseTimes, TokenLogprobs
from braid.engine.inbox import Inbox, join


def delta(*tokens: int, reason: FinishReason | None = None, cached: int = 0) -> Delta:
    return Delta("r", tokens, None, cached, reason)


async def test_a_waiting_reader_is_woken() -> None:
    inbox = Inbox()
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(delta(1))
    assert (await reader).token_ids == (1,)


async def test_a_late_reader_gets_everything_at_once() -> None:
    inbox = Inbox()
    for item in (delta(1, cached=7), delta(2, 3), delta(4, reason=FinishReason.STOP)):
        inbox.put(item)
    got = await inbox.get()
    assert got.token_ids == (1, 2, 3, 4)
    assert got.num_cached_tokens == 7
    assert got.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
async def test_failures_come_alone(reason: FinishReason) -> None:
    inbox = Inbox()
    for item in (delta(1), delta(2), delta(reason=reason)):
        inbox.put(item)
    assert (await inbox.get()).token_ids == (1, 2)
    assert (await inbox.get()).finish_reason is reason


async def test_errors_come_after_what_was_before_them() -> None:
    inbox = Inbox()
    for item in (delta(1), delta(2), EngineDeadError("gone")):
        inbox.put(item)
    assert (await inbox.get()).token_ids == (1, 2)
    with pytest.raises(EngineDeadError, match="gone"):
        await inbox.get()


async def test_a_reader_that_gave_up_loses_nothing() -> None:
    inbox = Inbox()
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    inbox.put(delta(1))
    assert (await inbox.get()).token_ids == (1,)


def test_join_keeps_every_field() -> None:
    one, two = TokenLogprobs(1, -0.5, 1, ()), TokenLogprobs(2, -1.0, 2, ())
    times = PhaseTimes(queued=1.0)
    first = Delta("r", (1,), (one,), 3, prompt_logprobs=(None, one))
    last = Delta("r", (2,), (two,), 0, FinishReason.STOP, "END", None, times)
    joined = join([first, last])
    assert joined == Delta(
        "r", (1, 2), (one, two), 3, FinishReason.STOP, "END", None, times, prompt_logprobs=(None, one)
    )
    assert join([first]) is first
