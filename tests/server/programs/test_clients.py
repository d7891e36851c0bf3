"""What stock clients send, as turns of a conversation: with their ids, with the ids lost on the way, and forged."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
import pytest

from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys
from braid.server.programs.identity import ROWS

ASK = "please look at the file and tell me what is in it, line by line"
MINE, YOURS = {"x-api-key": "one"}, {"x-api-key": "two"}


class Client(NamedTuple):
    """How one client speaks: its dialect, and what names its program (and the program that started it)."""

    dialect: str
    headers: dict[str, str]
    body: dict[str, Any]
    program: str
    parent: str | None = None
    group: str | None = None


CLIENTS = {
    "claude code": Client("messages", {"X-Claude-Code-Session-Id": "s"}, {}, "s"),
    "claude code, a sub-agent": Client(
        "messages",
        {
            "X-Claude-Code-Session-Id": "s",
            "x-claude-code-agent-id": "a",
            "x-claude-code-parent-agent-id": "main",
        },
        {},
        "a",
        "main",
        "s",
    ),
    "codex": Client(
        "responses",
        {"session-id": "s", "thread-id": "t", "x-client-request-id": "r"},
        {"prompt_cache_key": "t"},
        "t",
        None,
        "s",
    ),
    "codex, an older release": Client("responses", {"session_id": "s"}, {"prompt_cache_key": "s"}, "s"),
    "codex, a sub-agent": Client(
        "responses",
        {
            "session_id": "s",
            "thread-id": "t2",
            "x-codex-parent-thread-id": "t",
            "x-openai-subagent": "review",
        },
        {"prompt_cache_key": "t2"},
        "t2",
        "t",
        "s",
    ),
    "opencode": Client(
        "chat", {"X-Session-Id": "s", "x-session-affinity": "s", "x-parent-session-id": "p"}, {}, "s", "p"
    ),
    "opencode, affinity only": Client("chat", {"x-session-affinity": "s"}, {}, "s"),
    "openhands": Client("chat", {"x-litellm-session-id": "s"}, {}, "s"),
    "mini-swe-agent under harbor": Client("chat", {"X-Session-ID": "s"}, {}, "s"),
    "aiperf": Client("chat", {"X-Correlation-ID": "c", "X-Session-Affinity": "c"}, {}, "c"),
    "aiperf by dynamo": Client(
        "chat",
        {"X-Correlation-ID": "c", "X-Dynamo-Session-ID": "d", "X-Dynamo-Parent-Session-ID": "p"},
        {},
        "d",
        "p",
    ),
    "continuum": Client("completions", {}, {"job_id": 17, "is_last_step": False}, "17"),
    "vllm_xargs": Client("chat", {}, {"vllm_xargs": {"session_id": "s"}}, "s"),
    "the proposal of vllm": Client(
        "chat", {}, {"agent_hint": {"session_id": "s", "parent_session_id": "p"}}, "s", "p"
    ),
    "braid": Client("chat", {}, {"session_id": "s", "parent_session_id": "p"}, "s", "p"),
}
UNNAMED = {
    "prompt_cache_key": Client("chat", {}, {"prompt_cache_key": "team"}, ""),
    "a user is no program": Client("chat", {}, {"user": "u", "safety_identifier": "u"}, ""),
    "nothing": Client("chat", {}, {}, ""),
}


def request(dialect: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
    """A conversation: texts of the user and of the assistant in turn."""
    talk = [
        {"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(texts)
    ]
    match dialect:
        case "chat":
            return "/v1/chat/completions", {"messages": talk, "max_tokens": 40}
        case "responses":
            return "/v1/responses", {"input": talk, "max_output_tokens": 40}
        case "messages":
            return "/v1/messages", {"messages": talk, "max_tokens": 40}
    joined = "".join(f"{'Q' if at % 2 == 0 else 'A'}: {text}\n" for at, text in enumerate(texts))
    return "/v1/completions", {"prompt": joined + "A: ", "max_tokens": 40}


class Talk:
    """One conversation, turn by turn."""

    def __init__(self, http: httpx.AsyncClient, engine: Any, client: Client) -> None:
        self._http, self._engine, self._client = http, engine, client
        self.texts = [ASK]

    async def turn(self, headers: dict[str, str] | None = None, *, named: bool = True) -> Any:
        """The program that the engine hears of."""
        path, body = request(self._client.dialect, self.texts)
        sent = {**MINE, **(self._client.headers if named else {}), **(headers or {})}
        answer = await self._http.post(
            path, json={**body, **(self._client.body if named else {})}, headers=sent
        )
        assert answer.status_code == 200, answer.text
        self.texts += [self._engine.reply, "and then?"]
        return self._engine.seen[-1].program


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(api_keys=named_keys(("one", "two")))


@pytest.fixture(params=list(CLIENTS))
def named(request: pytest.FixtureRequest) -> Client:
    return CLIENTS[request.param]


async def test_its_id_names_its_program(client: httpx.AsyncClient, engine: Any, named: Client) -> None:
    talk = Talk(client, engine, named)
    for _ in range(2):
        program = await talk.turn()
        assert (program.program, program.parent, program.group) == (named.program, named.parent, named.group)


async def test_lost_on_the_way_the_prompt_tells(
    client: httpx.AsyncClient, engine: Any, named: Client
) -> None:
    talk = Talk(client, engine, named)
    await talk.turn()
    program = await talk.turn(named=False)
    assert (program.program, program.source) == (named.program, "prefix")
    back = await talk.turn()
    assert back.program == named.program


async def test_forged_by_another_key_it_opens_nothing(
    client: httpx.AsyncClient, engine: Any, named: Client
) -> None:
    talk = Talk(client, engine, named)
    mine, salt = await talk.turn(), engine.seen[-1].cache_salt
    forged = await talk.turn(YOURS)
    assert forged.program == mine.program
    assert forged.owner != mine.owner
    assert engine.seen[-1].cache_salt != salt
    stolen = await talk.turn(YOURS, named=False)
    assert stolen.owner == forged.owner  # it continues what that key has sent itself
    assert (await talk.turn(named=False)).owner == mine.owner


async def test_forged_within_a_key_it_groups_and_the_prompt_decides_reuse(
    client: httpx.AsyncClient, engine: Any, named: Client
) -> None:
    await Talk(client, engine, named).turn()
    other = Talk(client, engine, named)
    other.texts = ["a conversation about something else altogether, with no word in common"]
    assert (await other.turn()).program == named.program
    assert len({request.cache_salt for request in engine.seen}) == 1


@pytest.mark.parametrize("name", list(UNNAMED))
async def test_those_that_name_none_are_told_by_their_prompts(
    client: httpx.AsyncClient, engine: Any, name: str
) -> None:
    talk, other = (Talk(client, engine, UNNAMED[name]) for _ in range(2))
    other.texts = ["a conversation about something else altogether, with no word in common"]
    mine, yours = await talk.turn(), await other.turn()
    assert mine.program != yours.program
    assert (await talk.turn()).program == mine.program
    assert (await other.turn()).program == yours.program


async def test_a_cache_key_without_its_prefix_is_nothing(client: httpx.AsyncClient, engine: Any) -> None:
    talk = Talk(client, engine, UNNAMED["prompt_cache_key"])
    mine = await talk.turn()
    talk.texts[0] = "the beginning is another one now, and all that follows it with it"
    assert (await talk.turn()).program != mine.program


def test_every_spelling_is_sent_by_somebody() -> None:
    """Those of parents, of ends and of groups too, but for the few that have tests of their own."""
    clients = [*CLIENTS.values(), *UNNAMED.values()]
    headers = {name.lower() for client in clients for name in client.headers}
    fields = {path for client in clients for path in _paths(client.body)}
    missing = {row.label for row in ROWS} - headers - fields
    assert missing <= {
        "program_id",
        "session_final",
        "agent_hints.workflow_id",
        "vllm_xargs.job_id",
        "vllm_xargs.is_last_step",
        "x-dynamo-session-final",
    }


def _paths(body: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for name, value in body.items():
        found += _paths(value, f"{above}{name}.") if isinstance(value, dict) else [above + name]
    return found
