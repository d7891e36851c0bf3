"""An EngineClient over an engine in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from braid.core.errors import BraidError
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta
from braid.engine.core import EngineCore
from braid.engine.protocol import MAX_LISTED, EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish


class LocalClient:
    """Carries requests from an asyncio loop to the engine's thread and deltas back."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    @property
    def is_ready(self) -> bool:
        return self._core.is_alive

    @property
    def down_reason(self) -> str:
        return "" if self._core.is_alive else "the engine is not running"

    @property
    def restarts(self) -> int:
        return 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """See ``EngineClient.generate``."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Delta | BraidError] = asyncio.Queue()

        def put(item: Delta | BraidError) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, item)

        self._core.submit(request, put, put)
        finished = False
        try:
            while not finished:
                item = await inbox.get()
                if isinstance(item, BraidError):
                    finished = True
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            if not finished:
                self._core.abort(request.request_id)

    async def stats(self) -> EngineStats:
        return await asyncio.wrap_future(self._core.stats())

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        """See ``EngineClient.program``."""
        return await asyncio.wrap_future(self._core.program(verb, program, seconds))

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        """See ``EngineClient.told``."""
        self._core.told(program, finish, tool)

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        """See ``EngineClient.programs``."""
        return await asyncio.wrap_future(self._core.programs(owner, min(limit, MAX_LISTED)))
