"""What several checks share. The machinery is in ``rig`` (faults and steps under control) and ``served``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .asks import Answer, ask_all
from .rig import Gate, local


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="session")
def undisturbed(tiny_llama: Path) -> dict[str, Answer]:
    """What everybody gets where nothing goes wrong."""

    async def run() -> dict[str, Answer]:
        async with local(tiny_llama) as rig:
            return await ask_all(rig)

    answers = asyncio.run(run())
    assert not any(answer.failed for answer in answers.values()), answers
    return answers
