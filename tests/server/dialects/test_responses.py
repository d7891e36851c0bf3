"""The Responses API over a socket, as the official SDK sees it: every answer and event checked strictly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response as SdkResponse
from pydantic import BaseModel

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import EngineDeadError, OverloadedError
from braid.server.config import ServerConfig, ServerContext
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart
from braid.text.template import ChatTemplate
from braid.text.tools import Tool, ToolChoice

PATH = "/v1/responses"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
    "[call {{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if tools %}[{{ tools | map(attribute='function.name') | join(' ') }}]{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}[no thinking]{% endif %}"
    "<|im_start|>assistant\n"
)
FUNCTION = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CUSTOM = {"type": "custom", "name": "patch", "description": "Applies a patch."}
CALL = 'weather({"city": "Ulm"})'
PATCH = '*** Begin Patch\n+ "é" 😀\n*** End Patch'


class BarReader:
    """``|think|...|text|...|call|name(arguments)|``: parts between bars, so that a cut text is simple to read."""

    def __init__(self) -> None:
        self.in_reasoning = False
        self.num_calls = 0
        self._kind = "text"
        self._field = 0
        self._name = ""

    def feed(self, text: str) -> list[ReplyPart]:
        parts: list[ReplyPart] = []
        for char in text:
            parts.extend(self._char(char))
        return parts

    def _char(self, char: str) -> Sequence[ReplyPart]:
        if char == "|":
            self._field += 1
            ended = self._kind == "arguments"
            self._kind, self._name = ("mark" if self._field % 2 else self._name), ""
            self.in_reasoning = self._kind == "think"
            return [CallEnd(self.num_calls - 1)] if ended else []
        match self._kind:
            case "mark" | "call" if char != "(":
                self._name += char
                return []
            case "call":
                self._kind, self.num_calls = "arguments", self.num_calls + 1
                number = self.num_calls - 1
                return [CallStart(number, f"call_{number}", self._name)]
            case "arguments":
                return [CallArguments(self.num_calls - 1, char)] if char != ")" else []
            case "think":
                return [Reasoning(char)]
            case _:
                return [Content(char)]

    def finish(self) -> list[ReplyPart]:
        return []


class BarFormat:
    name = "bar"
    special_tokens: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> BarReader:
        return BarReader()

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        self.asked.append({"tools": tools, "choice": choice, "parallel": parallel, "answer": answer})
        return answer


def reply(*, think: str = "", text: str = "", calls: Sequence[str] = ()) -> str:
    marks = [f"|think|{think}"] if think else []
    marks += [f"|text|{text}"] if text else []
    return "".join([*marks, *(f"|call|{call}" for call in calls)]) + ("|" if calls else "")


@pytest.fixture
def reply_format() -> BarFormat:
    return BarFormat()


@pytest.fixture
def context(engine: Any, tokenizer: Any, config: Any, reply_format: BarFormat) -> ServerContext:
    template = ChatTemplate(TEMPLATE, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    return ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template,
        served_model_names=("tiny",),
        reply_format=reply_format,
        config=config,
    )


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    options: dict[str, Any] = {"max_retries": 0, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **options) as sdk:
        yield sdk


async def ask(client: httpx.AsyncClient, input: Any = "hi", **fields: Any) -> httpx.Response:
    return await client.post(PATH, json={"input": input, **fields})


def prompt(engine: Any, number: int = -1) -> str:
    return engine.decode(list(engine.seen[number].prompt_token_ids))


def without_ids(value: Any) -> Any:
    """What must be equal of two answers to one request."""
    if isinstance(value, dict):
        skipped = ("id", "created_at", "completed_at", "item_id")
        return {key: without_ids(item) for key, item in value.items() if key not in skipped}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


class TestAnswer:
    async def test_text(self, client: httpx.AsyncClient, engine: Any) -> None:
        body = (await ask(client)).json()
        tokens = len(engine.seen[0].prompt_token_ids)
        output = len(engine.reply.encode())
        assert body["id"].startswith("resp_")
        assert (body["object"], body["status"], body["model"]) == ("response", "completed", "tiny")
        assert body["completed_at"] >= body["created_at"]
        message = body["output"][0]
        assert message.pop("id").startswith("msg_")
        part = {"type": "output_text", "text": engine.reply, "annotations": [], "logprobs": []}
        assert message == {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
        assert body["usage"] == {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": tokens // 16 * 16 - 3},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens + output,
        }

    async def test_order_of_items(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(think="hm", text="So: ", calls=[CALL, CALL])
        output = (await ask(client, tools=[FUNCTION])).json()["output"]
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
        assert output[0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
        assert output[0]["summary"] == []
        assert (output[2]["name"], output[2]["arguments"]) == ("weather", '{"city": "Ulm"}')
        assert len({item["id"] for item in output}) == 4
        assert output[2]["call_id"] != output[3]["call_id"]

    async def test_reasoning_is_counted(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(think="hmm", text="yes")
        usage = (await ask(client)).json()["usage"]
        assert 3 <= usage["output_tokens_details"]["reasoning_tokens"] <= 5

    async def test_what_was_asked_is_repeated(self, client: httpx.AsyncClient) -> None:
        asked = {
            "instructions": "Be short.",
            "max_output_tokens": 50,
            "max_tool_calls": 3,
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "prompt_cache_key": "thread",
            "safety_identifier": "someone",
            "temperature": 0.5,
            "top_p": 0.25,
            "top_logprobs": 2,
            "user": "me",
        }
        body = (await ask(client, **asked)).json()
        assert {name: body[name] for name in asked} == asked
        assert body["previous_response_id"] is None
        assert body["truncation"] == "disabled"
        assert body["store"] is False

    async def test_cut_off(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(text="one", calls=[CALL])
        body = (await ask(client, tools=[FUNCTION], max_output_tokens=30)).json()
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert body["completed_at"] is None
        assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
        assert '{"city": "Ulm"}'.startswith(body["output"][1]["arguments"])

    async def test_nothing_said_is_an_empty_message(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(think="hm")
        output = (await ask(client)).json()["output"]
        assert [item["type"] for item in output] == ["reasoning", "message"]
        assert output[1]["content"][0]["text"] == ""

    async def test_sealed_reasoning_comes_back(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(think="secret plan", calls=[CALL])
        body = (await ask(client, tools=[FUNCTION], include=["reasoning.encrypted_content"])).json()
        reasoning, call = body["output"]
        assert "secret plan" not in reasoning["encrypted_content"]
        carried = [{**reasoning, "content": None}, call]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        user = {"role": "user", "content": "hi"}
        assert (await ask(client, [user, *carried, result])).status_code == 200
        assert "<think>secret plan</think>[call weather" in prompt(engine)


class TestFields:
    async def test_they_reach_the_engine(self, client: httpx.AsyncClient, engine: Any) -> None:
        sampling = {"temperature": 0, "top_p": 0.5, "top_k": 5, "seed": 11, "min_p": 0.1}
        answer = await ask(client, **sampling, max_output_tokens=9, cache_salt="salt", stop=["zz"])
        assert answer.status_code == 200
        request = engine.seen[0]
        assert {name: getattr(request.params, name) for name in sampling} == sampling
        assert (request.params.max_tokens, request.params.stop) == (9, ("zz",))
        assert request.cache_salt == "salt"

    async def test_effort_reaches_the_template(self, client: httpx.AsyncClient, engine: Any) -> None:
        body = (await ask(client, reasoning={"effort": "none", "summary": "auto"})).json()
        assert body["reasoning"] == {"effort": "none", "summary": "auto"}
        assert "[no thinking]" in prompt(engine)

    @pytest.mark.parametrize(
        ("form", "source"),
        [
            ({"type": "text"}, None),
            ({"type": "json_object"}, {"type": "object"}),
            (
                {"type": "json_schema", "name": "s", "schema": {"type": "integer"}, "strict": True},
                {"type": "integer"},
            ),
        ],
    )
    async def test_text_format(
        self, client: httpx.AsyncClient, reply_format: BarFormat, form: dict[str, Any], source: Any
    ) -> None:
        body = (await ask(client, text={"format": form, "verbosity": "low"})).json()
        assert body["text"] == {"format": form, "verbosity": "low"}
        answer = reply_format.asked[0]["answer"]
        if source is None:
            assert answer is None
        else:
            assert answer.kind is ConstraintKind.JSON_SCHEMA
            assert json.loads(answer.source) == source

    @pytest.mark.parametrize(
        ("choice", "parsed", "shown"),
        [
            (None, ToolChoice("auto"), "auto"),
            ("none", ToolChoice("none"), "none"),
            ("required", ToolChoice("required"), "required"),
            ({"type": "function", "name": "weather"}, ToolChoice("required", ("weather",)), None),
            ({"type": "custom", "name": "patch"}, ToolChoice("required", ("patch",)), None),
            (
                {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "weather"}, {"type": "custom", "name": "patch"}],
                },
                ToolChoice("auto", ("weather", "patch")),
                None,
            ),
            ({"type": "web_search_preview"}, ToolChoice("auto"), "auto"),
        ],
    )
    async def test_tool_choice(
        self, client: httpx.AsyncClient, reply_format: BarFormat, choice: Any, parsed: Any, shown: Any
    ) -> None:
        answer = await ask(client, tools=[FUNCTION, CUSTOM], tool_choice=choice)
        assert reply_format.asked[0]["choice"] == parsed
        assert answer.json()["tool_choice"] == (choice if shown is None else shown)

    async def test_foreign_tools_are_dropped(self, client: httpx.AsyncClient, engine: Any) -> None:
        tools = [{"type": "web_search"}, FUNCTION, {"type": "local_shell"}, {"type": "brand_new", "x": 1}]
        answer = await ask(client, tools=tools)
        assert "[weather]" in prompt(engine)
        assert [tool["type"] for tool in answer.json()["tools"]] == ["function"]
        assert all(f"tools.{index}" in answer.headers["warning"] for index in (0, 2, 3))

    async def test_one_call_where_parallel_is_off(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(calls=[CALL, CALL])
        body = (await ask(client, tools=[FUNCTION], parallel_tool_calls=False)).json()
        assert [item["type"] for item in body["output"]] == ["function_call"]
        assert body["status"] == "completed"

    async def test_unseen_truncation_is_named(self, client: httpx.AsyncClient) -> None:
        assert "truncation" in (await ask(client, truncation="auto")).headers["warning"]

    @pytest.mark.parametrize(
        ("fields", "status", "param", "code"),
        [
            ({"input": None}, 400, "input", None),
            ({"input": 5}, 400, "input", None),
            ({"input": []}, 400, "messages", None),
            ({"previous_response_id": "resp_1"}, 404, "previous_response_id", "previous_response_not_found"),
            ({"background": True}, 400, "background", None),
            ({"conversation": "conv_1"}, 400, "conversation", None),
            ({"conversation": {"id": "conv_1"}}, 400, "conversation", None),
            ({"prompt": {"id": "pmpt_1"}}, 400, "prompt", None),
            ({"max_output_tokens": 0}, 400, "max_output_tokens", None),
            ({"max_tool_calls": 0}, 400, "max_tool_calls", None),
            ({"top_logprobs": 21}, 400, "top_logprobs", None),
            ({"truncation": "maybe"}, 400, "truncation", None),
            ({"reasoning": {"effort": "enormous"}}, 400, "reasoning", None),
            ({"text": {"format": {"type": "xml"}}}, 400, "text.format", None),
            ({"text": {"format": {"type": "json_schema", "name": "s"}}}, 400, "text.format", None),
            ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, 400, "regex", None),
            ({"tools": [{"type": "function"}]}, 400, "tools", None),
            ({"tools": [{"type": "custom", "name": 5}]}, 400, "tools", None),
            ({"tool_choice": "required"}, 400, "tool_choice", None),
            ({"tool_choice": {"type": "function", "name": "nobody"}}, 400, "tool_choice", None),
            ({"max_tokens": 5}, 400, "max_tokens", None),
            ({"n": 2}, 400, "n", None),
            ({"response_format": {"type": "json_object"}}, 400, "response_format", None),
            ({"model": "gpt"}, 404, "model", "model_not_found"),
        ],
    )
    async def test_refusals(
        self, client: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str, code: str | None
    ) -> None:
        answer = await client.post(PATH, json={"input": "hi", **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", f"{PATH}/resp_1"),
            ("DELETE", f"{PATH}/resp_1"),
            ("POST", f"{PATH}/resp_1/cancel"),
            ("GET", f"{PATH}/resp_1/input_items"),
        ],
    )
    async def test_nothing_is_stored(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        answer = await client.request(method, path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "response_not_found"


REPLIES = [
    "",
    "Hello, wörld! 😀",
    reply(think="hm 😀"),
    reply(think="hm", text="yes"),
    reply(text="So: ", calls=[CALL, CALL]),
    reply(think="hm", calls=["patch(" + json.dumps({"input": PATCH}) + ")"]),
    reply(calls=["patch(no object)", CALL]) + "text|and so on",
]


def sequence(text: str) -> list[dict[str, Any]]:
    """The events of a stream; each has its name twice, and nothing else is sent."""
    events = []
    for block in filter(None, text.split("\n\n")):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


class TestStream:
    @pytest.mark.parametrize("burst", [1, 3, 100])
    @pytest.mark.parametrize("limit", [None, 5, 40])
    @pytest.mark.parametrize("text", REPLIES)
    async def test_equals_the_answer(
        self, client: httpx.AsyncClient, engine: Any, text: str, limit: int | None, burst: int
    ) -> None:
        engine.reply, engine.burst = text or " ", burst
        fields = {"tools": [FUNCTION, CUSTOM], "max_output_tokens": limit, "instructions": "x"}
        whole = (await ask(client, **fields)).json()
        events = sequence((await ask(client, stream=True, **fields)).text)
        assert without_ids(events[-1]["response"]) == without_ids(whole)
        assert events[-1]["type"] == f"response.{whole['status']}"
        check_lives(events)

    async def test_failure_is_the_last_event(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.error, engine.fail_after = EngineDeadError("the engine died"), 4
        events = sequence((await ask(client, stream=True)).text)
        assert events[-1]["type"] == "response.failed"
        response = events[-1]["response"]
        assert response["error"] == {"code": "server_error", "message": "the engine died"}
        assert response["status"] == "failed"
        assert response["output"][0]["status"] == "incomplete"
        assert response["output"][0]["content"][0]["text"] == "Hell"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert not engine.active

    async def test_failure_before_the_first_token(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.error = OverloadedError("full", retry_after=3)
        answer = await ask(client, stream=True)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.headers["retry-after"] == "3"

    async def test_unforeseen_failure_tells_no_details(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.error, engine.fail_after = RuntimeError("secret"), 4
        answer = await ask(client, stream=True)
        assert sequence(answer.text)[-1]["type"] == "response.failed"
        assert "secret" not in answer.text

    async def test_custom_input_is_unpacked(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.reply = reply(calls=["patch(" + json.dumps({"input": PATCH}) + ")"])
        events = sequence((await ask(client, stream=True, tools=[CUSTOM])).text)
        deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
        assert len(deltas) > 10
        assert "".join(deltas) == PATCH
        item = events[-1]["response"]["output"][0]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", PATCH)

    async def test_logprobs(self, client: httpx.AsyncClient, engine: Any) -> None:
        include = ["message.output_text.logprobs"]
        answer = await ask(client, stream=True, include=include, top_logprobs=2)
        events = sequence(answer.text)
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        for event in deltas:
            text = bytes(byte for entry in event["logprobs"] for byte in entry["bytes"])
            assert text == event["delta"].encode()
        part = events[-1]["response"]["output"][0]["content"][0]
        assert part["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]
        assert len(part["logprobs"][0]["top_logprobs"]) == 2


class TestLongWait:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(keepalive_seconds=0.05)

    async def test_failure_after_silence(self, url: str, engine: Any) -> None:
        engine.error, engine.fail_after, engine.hold_after = EngineDeadError("the engine died"), 0, 0
        async with (
            httpx.AsyncClient(base_url=url) as client,
            client.stream("POST", PATH, json={"input": "hi", "stream": True}) as answer,
        ):
            text = ""
            async for piece in answer.aiter_text():
                text += piece
                engine.go.set()
        events = sequence(text)
        names = [event["type"] for event in events]
        assert text.startswith(": ping")
        assert names == ["response.created", "response.in_progress", "response.failed"]
        assert events[2]["response"]["output"] == []


def check_lives(events: list[dict[str, Any]]) -> None:
    """Numbers rise by one; items open and close in turn; what is closed is what its deltas say."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    terminal = ("response.completed", "response.incomplete", "response.failed")
    assert [event["type"] in terminal for event in events] == [False] * (len(events) - 1) + [True]
    done, open_item, text = [], None, ""
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert open_item is None
            assert event["output_index"] == len(done)
            open_item, text = event["item"], ""
            assert open_item["status"] == "in_progress"
            continue
        assert open_item is not None
        assert event["output_index"] == len(done)
        if kind == "output_item.done":
            assert event["item"]["id"] == open_item["id"]
            done.append(event["item"])
            open_item = None
        else:
            assert event["item_id"] == open_item["id"]
        if kind.endswith(".delta"):
            text += event["delta"]
        elif kind.endswith(".done") and kind not in ("output_item.done", "content_part.done"):
            assert next(event[key] for key in ("text", "arguments", "input") if key in event) == text
    assert open_item is None
    assert done == events[-1]["response"]["output"]


async def stream_of(sdk: openai.AsyncOpenAI, **fields: Any) -> tuple[list[Any], SdkResponse]:
    stream = await sdk.responses.create(model="tiny", stream=True, **fields)
    events = [event async for event in stream]
    return events, events[-1].response


TURN: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
]
SDK_CALLS: list[dict[str, Any]] = [
    {"input": "hi"},
    {"input": "hi", "instructions": "Be short.", "temperature": 0.0, "top_p": 1.0},
    {"input": "hi", "max_output_tokens": 5},
    {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 3},
    {"input": "hi", "reasoning": {"effort": "high", "summary": "detailed"}},
    {"input": "hi", "include": ["reasoning.encrypted_content"], "store": False},
    {"input": "hi", "text": {"format": {"type": "json_object"}, "verbosity": "low"}},
    {"input": "hi", "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}},
    {"input": "hi", "metadata": {"a": "b"}, "user": "me", "safety_identifier": "x", "service_tier": "flex"},
    {"input": "hi", "prompt_cache_key": "k", "prompt_cache_options": {"mode": "explicit", "ttl": "12h"}},
    {"input": "hi", "prompt_cache_retention": "24h", "truncation": "auto", "background": False},
    {"input": "hi", "tools": [FUNCTION, CUSTOM, {"type": "web_search"}], "parallel_tool_calls": False},
    {"input": "hi", "tools": [FUNCTION], "tool_choice": {"type": "function", "name": "weather"}},
    {"input": "hi", "tools": [CUSTOM], "tool_choice": {"type": "custom", "name": "patch"}},
    {"input": TURN, "tools": [FUNCTION], "tool_choice": "required", "max_tool_calls": 2},
    {
        "input": TURN,
        "tools": [
            FUNCTION,
            {**CUSTOM, "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}},
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "weather"}],
        },
    },
]


class TestSdk:
    """openai-python, with strict validation of all that it receives."""

    @pytest.mark.parametrize("text", [REPLIES[3], REPLIES[4], REPLIES[5]])
    @pytest.mark.parametrize("fields", SDK_CALLS)
    async def test_calls(
        self, sdk: openai.AsyncOpenAI, engine: Any, fields: dict[str, Any], text: str
    ) -> None:
        engine.reply = text
        whole = await sdk.responses.create(model="tiny", **fields)
        events, streamed = await stream_of(sdk, **fields)
        assert whole.status == streamed.status
        assert without_ids(whole.model_dump()) == without_ids(streamed.model_dump())
        assert len({event.type for event in events}) > 5 or whole.status == "incomplete"

    async def test_stream_helper(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        engine.reply = reply(
            think="hm", text="Yes", calls=[CALL, "patch(" + json.dumps({"input": PATCH}) + ")"]
        )
        async with sdk.responses.stream(model="tiny", input="hi", tools=[FUNCTION, CUSTOM]) as stream:
            snapshots = [
                event.snapshot async for event in stream if event.type == "response.output_text.delta"
            ]
            final = await stream.get_final_response()
        assert snapshots == ["Y", "Ye", "Yes"]
        assert final.output_text == "Yes"
        assert final.output[2].parsed_arguments == {"city": "Ulm"}
        assert final.output[3].input == PATCH

    async def test_parse(self, sdk: openai.AsyncOpenAI, engine: Any, reply_format: BarFormat) -> None:
        class City(BaseModel):
            name: str
            size: int

        engine.reply = '{"name": "Ulm", "size": 3}'
        answer = await sdk.responses.parse(model="tiny", input="hi", text_format=City)
        assert answer.output_parsed == City(name="Ulm", size=3)
        assert set(json.loads(reply_format.asked[0]["answer"].source)["properties"]) == {"name", "size"}
        async with sdk.responses.stream(model="tiny", input="hi", text_format=City) as stream:
            assert (await stream.get_final_response()).output_parsed == City(name="Ulm", size=3)

    async def test_parse_strict_tool(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        engine.reply = reply(calls=[CALL])
        answer = await sdk.responses.parse(model="tiny", input="hi", tools=[FUNCTION])
        assert answer.output[0].parsed_arguments == {"city": "Ulm"}

    @pytest.mark.parametrize("stream", [False, True])
    async def test_tool_loop(self, sdk: openai.AsyncOpenAI, engine: Any, stream: bool) -> None:
        def scripted(text: str) -> str:
            if "<|im_start|>tool\nsunny" in text:
                return reply(think="now I know", text="It is sunny.")
            return reply(think="look", calls=[CALL])

        engine.reply = scripted
        history: list[Any] = [{"role": "user", "content": "Weather in Ulm?"}]
        for _ in range(2):
            if stream:
                _, answer = await stream_of(sdk, input=history, tools=[FUNCTION])
            else:
                answer = await sdk.responses.create(model="tiny", input=history, tools=[FUNCTION])
            history += [item.model_dump(exclude_none=True) for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            history += [
                {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls
            ]
        assert answer.output_text == "It is sunny."
        assert "<think>look</think>[call weather" in prompt(engine)

    async def test_incomplete(self, sdk: openai.AsyncOpenAI) -> None:
        _, answer = await stream_of(sdk, input="hi", max_output_tokens=4)
        assert (answer.status, answer.output_text) == ("incomplete", "Hell")
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"

    async def test_failure_in_a_stream(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        engine.error, engine.fail_after = EngineDeadError("the engine died"), 4
        events, answer = await stream_of(sdk, input="hi")
        assert events[-1].type == "response.failed"
        assert answer.error is not None
        assert answer.error.message == "the engine died"
        with pytest.raises(openai.InternalServerError, match="the engine died"):
            await sdk.responses.create(model="tiny", input="hi")

    async def test_errors_raise(self, sdk: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.cancel("resp_1")
        with pytest.raises(openai.BadRequestError) as too_long:
            await sdk.responses.create(model="tiny", input="x" * 2000)
        assert too_long.value.code == "context_length_exceeded"


class TestCodex:
    """The requests of a coding agent that keeps the conversation itself."""

    TOOLS: Sequence[dict[str, Any]] = (
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a command and returns its output.",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "array", "items": {"type": "string"}},
                    "workdir": {"type": "string"},
                    "timeout_ms": {"type": "number"},
                },
                "required": ["command"],
                "additionalProperties": False,
            },
        },
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" /.+/s'},
        },
        {
            "type": "function",
            "name": "update_plan",
            "description": "Updates the plan.",
            "strict": False,
            "parameters": {"type": "object", "properties": {"plan": {"type": "array", "items": {}}}},
        },
        {"type": "web_search", "external_web_access": False},
        {"type": "local_shell"},
        {"type": "namespace", "name": "mcp", "description": "", "tools": []},
    )

    def body(self, input: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": "tiny",
            "instructions": "You are a coding agent.",
            "input": input,
            "tools": list(self.TOOLS),
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
            "text": {"verbosity": "medium"},
            "client_metadata": {"x-codex-installation-id": "1"},
        }

    @staticmethod
    def kept(item: dict[str, Any]) -> dict[str, Any]:
        """What such a client sends back of an item: no ids, no readable reasoning."""
        dropped = ("id", "status") + (("content",) if item["type"] == "reasoning" else ())
        return {key: value for key, value in item.items() if key not in dropped and value is not None}

    async def turn(self, url: str, input: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        headers = {
            "authorization": "Bearer none",
            "accept": "text/event-stream",
            "originator": "codex_cli_rs",
        }
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            answer = await client.post(PATH, json=self.body(input))
        assert answer.status_code == 200, answer.text
        events = sequence(answer.text)
        assert events[-1]["type"] == "response.completed"
        SdkResponse.model_validate(events[-1]["response"])
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        return done, answer.headers["warning"]

    async def test_tool_loop(self, url: str, engine: Any) -> None:
        def scripted(text: str) -> str:
            if "Success" in text:
                return reply(text="Done.")
            if "README.md" in text:
                return reply(calls=["apply_patch(" + json.dumps({"input": PATCH}) + ")"])
            return reply(think="list first", calls=['shell({"command": ["ls"]})'])

        engine.reply = scripted
        history: list[dict[str, Any]] = [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "<permissions>read-only</permissions>"}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "<environment_context>/src</environment_context>"}
                ],
            },
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
        ]
        items, warning = await self.turn(url, history)
        assert all(f"tools.{index}" in warning for index in (3, 4, 5))
        start = (
            "<|im_start|>system\nYou are a coding agent.\n\n<permissions>read-only</permissions><|im_end|>"
        )
        assert prompt(engine).startswith(start)
        assert "[shell apply_patch update_plan]" in prompt(engine)
        assert [item["type"] for item in items] == ["reasoning", "function_call"]
        history += [self.kept(item) for item in items]
        result = json.dumps({"output": "README.md\n", "metadata": {"exit_code": 0}})
        history.append({"type": "function_call_output", "call_id": items[1]["call_id"], "output": result})

        items, _ = await self.turn(url, history)
        assert "<think>list first</think>[call shell" in prompt(engine)
        assert [(item["type"], item.get("input")) for item in items] == [("custom_tool_call", PATCH)]
        history += [self.kept(item) for item in items]
        history.append(
            {"type": "custom_tool_call_output", "call_id": items[0]["call_id"], "output": "Success"}
        )

        items, _ = await self.turn(url, history)
        assert items[0]["content"][0]["text"] == "Done."


async def test_events_have_no_done(client: httpx.AsyncClient, events: Callable[[str], Any]) -> None:
    assert "[DONE]" not in events((await ask(client, stream=True)).text)
