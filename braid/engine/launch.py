"""Start a supervised engine process beside this one. Free of torch."""

from __future__ import annotations

from collections.abc import Callable

from braid.core.config import EngineConfig
from braid.engine.client import OnProgress, ProcessClient


async def launch(
    config: EngineConfig,
    *,
    eos_token_ids: Callable[[], frozenset[int]],
    on_progress: OnProgress | None = None,
    log_level: str = "info",
) -> ProcessClient:
    """Return a client whose engine serves.

    Raises:
        BraidError: the engine cannot start; the text says why.
    """
    client = ProcessClient(config, eos_token_ids, on_progress=on_progress, log_level=log_level)
    await client.start()
    return client
