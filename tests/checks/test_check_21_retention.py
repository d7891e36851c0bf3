"""Check 21: clients that keep everything for ever do not stop anybody, and none keeps more than its share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid.core.program import ProgramRef, ProgramVerb
from braid.sched.leases import SHARE
from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys

from .rig import BLOCK, Rig, eventually, local

KEYS = ("first", "second", "third", "fourth")
CONFIG = ServerConfig(api_keys=named_keys(KEYS), key_share=1.0)
FEW: dict[str, Any] = {
    "kv_cache_memory": 100 * BLOCK * 2 * 2 * 64 * 4,
    "max_model_len": 160,
    "max_num_seqs": 4,
}
"""100 blocks of 4 tokens: the wishes below are for ten times as many."""
FOREVER = 24 * 3600.0
LENGTH = 100
"""Prompt tokens: a quarter of all blocks."""


def headers(key: str) -> dict[str, str]:
    return {"x-api-key": key}


def texts(seed: int) -> Iterator[str]:
    """Prompts that share no block."""
    source = random.Random(seed)
    while True:
        yield "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=LENGTH))


async def keep(rig: Rig, key: str, name: str, text: str, seconds: float = FOREVER) -> httpx.Response:
    """One turn of a program that asks to be kept."""
    body: dict[str, Any] = {"prompt": text, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    body |= {"session_id": name, "agent_hints": {"lease_s": seconds}}
    return await rig.post("/v1/completions", body, headers=headers(key))


async def plain(rig: Rig, key: str, text: str) -> httpx.Response:
    body = {"prompt": text, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    return await rig.post("/v1/completions", body, headers=headers(key))


async def held_by(rig: Rig) -> dict[str, int]:
    """Leased blocks of each owner."""
    assert rig.core is not None
    held = await asyncio.wrap_future(
        rig.core._loop.post(
            lambda scheduler, now: [
                (lease.holder.owner, lease.blocks) for lease in scheduler._retention.leases
            ]
        )
    )
    blocks: dict[str, set[int]] = {}
    for owner, own in held:
        blocks.setdefault(owner, set()).update(own)
    return {owner: len(own) for owner, own in blocks.items()}


async def test_everybody_keeps_everything(tiny_llama: Path) -> None:
    source = texts(21)
    async with local(tiny_llama, config=CONFIG, key=KEYS[0], **FEW) as rig:
        total = (await rig.stats()).num_blocks
        for turn in range(6):
            kept = [keep(rig, key, f"{key}-{turn}", next(source)) for key in KEYS]
            free = [plain(rig, key, next(source)) for key in KEYS]
            for answer in await asyncio.gather(*kept, *free):
                assert answer.status_code == 200, answer.text
            stats = await rig.stats()
            assert stats.num_leased_blocks <= total // SHARE
            owners = await held_by(rig)
            assert max(owners.values(), default=0) <= total // SHARE
        assert stats.leases_granted > 0
        assert stats.leases_clipped + stats.leases_revoked > 0
        whole = "z" * (FEW["max_model_len"] - 41)
        assert (await plain(rig, KEYS[0], whole)).status_code == 200


async def test_one_key_leaves_the_others_their_share(tiny_llama: Path) -> None:
    """Who comes late finds no room in the half that leases may hold only until it ends; never more than its part."""
    source = texts(22)
    async with local(tiny_llama, config=CONFIG, key=KEYS[0], **FEW) as rig:
        total = (await rig.stats()).num_blocks
        for number in range(8):
            assert (await keep(rig, KEYS[0], f"greedy-{number}", next(source))).status_code == 200
        assert max((await held_by(rig)).values()) <= total // SHARE
        answer = await keep(rig, KEYS[1], "modest", next(source))
        assert answer.status_code == 200
        assert (await plain(rig, KEYS[1], next(source))).status_code == 200
        for number in range(8):
            assert (await keep(rig, KEYS[2], f"late-{number}", next(source))).status_code == 200
        owners = await held_by(rig)
        assert sum(owners.values()) <= total // SHARE


async def test_abandoned_leases_end_by_themselves(tiny_llama: Path) -> None:
    source = texts(23)
    async with local(tiny_llama, config=CONFIG, key=KEYS[0], **FEW) as rig:
        for key in KEYS:
            assert (await keep(rig, key, key, next(source)[:40], seconds=1.0)).status_code == 200
        assert (await rig.stats()).leases_granted == len(KEYS)

        async def all_ended() -> bool:
            return (await rig.stats()).num_leases == 0

        await eventually(all_ended)


@pytest.mark.slow
async def test_for_a_long_time(tiny_llama: Path) -> None:
    """Thousands of wishes, verbs and plain requests in any order."""
    source, texts_of = random.Random(24), texts(25)
    async with local(tiny_llama, config=CONFIG, key=KEYS[0], **FEW) as rig:
        for _ in range(250):
            calls = []
            for _ in range(8):
                key, name = source.choice(KEYS), f"s{source.randint(0, 40)}"
                if source.random() < 0.6:
                    calls.append(keep(rig, key, name, next(texts_of)[: source.randint(1, LENGTH)]))
                else:
                    calls.append(plain(rig, key, next(texts_of)))
            for answer in await asyncio.gather(*calls):
                assert answer.status_code == 200, answer.text
            verb = source.choice(list(ProgramVerb))
            await rig.engine.program(verb, ProgramRef(owner=source.choice(KEYS), program="s1"), FOREVER)
            stats = await rig.stats()
            assert stats.num_leased_blocks <= stats.num_blocks // SHARE
