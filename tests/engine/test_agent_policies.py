"""Every policy gives the same tokens, tells true numbers of cached ones, and gives every block back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from braid import LLM
from braid.core.errors import InvalidParameterError
from braid.core.program import ProgramInfo, ProgramRef, ProgramVerb, RetainIntent
from braid.core.request import Delta
from braid.core.sampling import SamplingParams
from braid.engine.local import LocalClient
from braid.engine.protocol import GenerateRequest
from braid.policy.agents.catalog import NAMES
from braid.policy.agents.program import Finish

from .conftest import small_llm

BLOCK = 4
NUM_BLOCKS = 56
KV_BYTES = NUM_BLOCKS * BLOCK * 2 * 2 * 64 * 4
SHARED = tuple(range(50, 70))
PARAMS = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
Tokens = tuple[int, ...]


def open_llm(model: Path, policy: str) -> LLM:
    return small_llm(model, agent_policy=policy, kv_cache_memory=KV_BYTES, max_model_len=160)


def client_of(llm: LLM) -> LocalClient:
    return LocalClient(llm._core)


async def turn(
    client: LocalClient, program: ProgramRef, prompt: Tokens, number: int, intent: RetainIntent | None = None
) -> list[Delta]:
    name = f"{program.program}-{number}"
    request = GenerateRequest(name, prompt, PARAMS, program=program, intent=intent)
    return [delta async for delta in client.generate(request)]


def output(deltas: list[Delta]) -> Tokens:
    return tuple(token for delta in deltas for token in delta.token_ids)


async def agent(client: LocalClient, name: str, *, tool: bool) -> list[Tokens]:
    """Four turns, each on top of the one before."""
    program = ProgramRef(owner="", program=name)
    prompt, answers = (*SHARED, *(ord(char) % 200 for char in name * 8)), []
    for number in range(4):
        answers.append(output(await turn(client, program, prompt, number)))
        await client.told(program, Finish.TOOL if tool else Finish.TEXT, "pytest" if tool else None)
        prompt = (*prompt, *answers[-1], *range(10 * number, 10 * number + 7))
    return answers


async def crowd(client: LocalClient) -> list[list[Tokens]]:
    names = ("planner", "tester", "writer", "reader", "critic")
    return await asyncio.gather(*(agent(client, name, tool=name != "critic") for name in names))


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[list[Tokens]]:
    with open_llm(tiny_llama, "lru") as llm:
        return asyncio.run(crowd(client_of(llm)))


@pytest.mark.parametrize("policy", [name for name in NAMES if name != "lru"])
def test_the_same_tokens_under_every_policy(
    tiny_llama: Path, expected: list[list[Tokens]], policy: str
) -> None:
    with open_llm(tiny_llama, policy) as llm:
        assert llm.info.agent_policy == policy
        client = client_of(llm)
        assert asyncio.run(crowd(client)) == expected
        asyncio.run(all_back(client))


async def all_back(client: LocalClient) -> None:
    """Once every program is closed, nothing is held."""
    for info in await client.programs(None):
        await client.program(ProgramVerb.CLOSE, ProgramRef(owner=info.owner, program=info.program))
    assert await client.programs(None) == []
    stats = await client.stats()
    assert stats.num_free_blocks == stats.num_blocks


@pytest.mark.parametrize("policy", NAMES)
def test_cached_tokens_are_the_blocks_that_were_there(tiny_llama: Path, policy: str) -> None:
    """Also with holds, and after evictions: a client's usage is what it finds on the device."""

    async def play(client: LocalClient) -> list[bool]:
        whole = []
        program = ProgramRef(owner="", program="p")
        prompt = tuple(range(41))
        answer = output(await turn(client, program, prompt, 0))
        await client.told(program, Finish.TOOL, "pytest")
        for number, others in enumerate((0, 3, 1)):
            for other in range(others):
                away = tuple(range(60 + 30 * other, 160 + 30 * other))
                await turn(client, ProgramRef(owner="", program=f"o{number}{other}"), away, 0)
            prompt = (*prompt, *answer, 7, 8, 9)
            (info,) = [one for one in await client.programs("") if one.program == "p"]
            deltas = await turn(client, program, prompt, number + 1)
            assert deltas[-1].num_cached_tokens == info.num_device_blocks * BLOCK
            whole.append(info.num_device_blocks == info.num_blocks)
            answer = output(deltas)
            await client.told(program, Finish.TOOL, "pytest")
        return whole

    with open_llm(tiny_llama, policy) as llm:
        whole = asyncio.run(play(client_of(llm)))
    assert whole[0]
    if policy == "lru":
        assert whole == [True, False, True]


def test_what_is_told_and_asked(tiny_llama: Path) -> None:
    async def play(client: LocalClient) -> ProgramInfo:
        program = ProgramRef(owner="key", program="p")
        await turn(client, program, tuple(range(30)), 0, RetainIntent(lease_s=60.0))
        await client.told(program, Finish.TOOL, "pytest")
        assert await client.programs("another") == []
        (info,) = await client.programs("key")
        return info

    with open_llm(tiny_llama, "braid") as llm:
        assert set(llm.info.acts_on) >= {"min_s", "max_s", "return_s", "tool", "lease_s", "verbs"}
        info = asyncio.run(play(client_of(llm)))
    # The engine ended it by its length, and knows that better than whoever has read it.
    assert (info.finish, info.num_turns, info.num_tokens) == ("length", 1, 39)
    assert info.num_blocks == info.num_device_blocks == 9
    assert info.lease_s is not None
    assert 50 < info.lease_s <= 60


def test_an_unknown_policy(tiny_llama: Path) -> None:
    with pytest.raises(InvalidParameterError, match="'fifo'; choose one of lru") as caught:
        open_llm(tiny_llama, "fifo")
    assert caught.value.param == "agent_policy"
