"""Anthropic's dialect over a socket, spoken by Anthropic's own SDK with strict validation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import anthropic
import httpx
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from pydantic import BaseModel

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import EngineDeadError, OverloadedError
from braid.engine.protocol import EngineInfo
from braid.server.config import ServerConfig, ServerContext
from braid.server.errors import too_many
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart
from braid.text.template import ChatTemplate
from braid.text.tools import Tool, ToolChoice

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% if enable_thinking is defined %}<thinking {{ enable_thinking }}>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "<call {{ call.function.name }}>{{ call.function.arguments | tojson }}</call>"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEY = "sk-test-0123456789"
LINE = "x-anthropic-billing-header: cc_version=2.1.36.c4f; cc_entrypoint=cli; cch={};"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<call get_weather>{"city": "Zürich"}</call>'
LOOK = f"<think>I need it.</think>Let me look.{CALL}"
_TAG = re.compile(r"<(think)>|<(/think)>|<call (\w+)>|<(/call)>")


class TagReader:
    """Reads ``<think>``, ``<call name>`` and their ends; holds back what may begin one of them."""

    def __init__(self) -> None:
        self.in_reasoning = False
        self.num_calls = 0
        self._in_call = False
        self._held = ""

    def feed(self, text: str) -> list[ReplyPart]:
        self._held += text
        parts: list[ReplyPart] = []
        while match := _TAG.search(self._held):
            parts += self._text(self._held[: match.start()]) + self._tag(match)
            self._held = self._held[match.end() :]
        at = self._held.rfind("<")
        end = at if at >= 0 and ">" not in self._held[at:] else len(self._held)
        parts += self._text(self._held[:end])
        self._held = self._held[end:]
        return parts

    def finish(self) -> list[ReplyPart]:
        held, self._held = self._held, ""
        return self._text(held)

    def _tag(self, match: re.Match[str]) -> list[ReplyPart]:
        if match[1] or match[2]:
            self.in_reasoning = bool(match[1])
            return []
        self._in_call = bool(match[3])
        self.num_calls += self._in_call
        number = self.num_calls - 1
        return [CallStart(number, f"call_{number}", match[3]) if match[3] else CallEnd(number)]

    def _text(self, text: str) -> list[ReplyPart]:
        if not text:
            return []
        if self._in_call:
            return [CallArguments(self.num_calls - 1, text)]
        return [Reasoning(text) if self.in_reasoning else Content(text)]


class TagFormat:
    name = "tags"
    special_tokens: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.choices: list[tuple[ToolChoice, bool]] = []

    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> TagReader:
        return TagReader()

    def constraint(
        self,
        *,
        tools: Sequence[Tool],
        choice: ToolChoice,
        parallel: bool,
        answer: Constraint | None,
        prompt: str,
    ) -> Constraint | None:
        self.choices.append((choice, parallel))
        return answer


@pytest.fixture
def max_model_len() -> int:
    return 1 << 16


@pytest.fixture
def engine(engine: Any, max_model_len: int) -> Any:
    class Roomy(type(engine)):  # type: ignore[misc]
        @property
        def info(self) -> EngineInfo:
            return replace(super().info, max_model_len=max_model_len)

    engine.__class__ = Roomy
    engine.reply = "<think>Hm.</think>Hello, wörld! 😀"
    engine.burst = 3
    return engine


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(api_key=KEY, keepalive_seconds=0.05, max_body_bytes=1 << 20)


@pytest.fixture
def context(context: ServerContext) -> ServerContext:
    template = ChatTemplate(TEMPLATE, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    return replace(context, reply_format=TagFormat(), chat_template=template)


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(
        api_key=KEY, base_url=url, max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def raw(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}, timeout=30) as client:
        yield client


def ask(*content: Any, **more: Any) -> dict[str, Any]:
    """Arguments of a call; ``content`` are messages of alternating roles."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": item} for at, item in enumerate(content or ("hi",))]
    return {"model": "tiny", "max_tokens": 512, "messages": messages, **more}


def prompt_of(engine: Any, at: int = -1) -> str:
    return str(engine.decode(list(engine.seen[at].prompt_token_ids)))


USED = [{"type": "tool_use", "id": "toolu_call_0", "name": "get_weather", "input": {"city": "Zürich"}}]
RESULT = [{"type": "tool_result", "tool_use_id": "toolu_call_0", "content": "rain"}]
EPHEMERAL = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (ask(), ""),
    "text_blocks": (ask([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ""),
    "system_string": (ask(system="Be brief."), ""),
    "system_blocks": (ask(system=[{"type": "text", "text": "a", "cache_control": EPHEMERAL}]), ""),
    "many_turns": (ask("a", "b", "c", "d", "e"), ""),
    "prefill": (ask("2+2?", "The answer is"), " 4."),
    "roles_in_a_row": (
        {**ask(), "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        "",
    ),
    "system_role": ({**ask(), "messages": [{"role": "system", "content": "s"}, *ask()["messages"]]}, ""),
    "temperature": (ask(extra_body={"temperature": 0.0}), ""),
    "sampling": (ask(extra_body={"temperature": 0.7, "top_p": 0.9, "top_k": 40}), ""),
    "stop_sequence": (ask(stop_sequences=["wör", "never"]), ""),
    "stop_unmet": (ask(stop_sequences=["never"]), ""),
    "max_tokens": (ask(max_tokens=20), ""),
    "one_token": (ask(max_tokens=1), "word"),
    "huge_max_tokens": (ask(max_tokens=1 << 20), ""),
    "metadata": (ask(metadata={"user_id": "user_1_account__session_2"}), ""),
    "service_tier": (ask(service_tier="auto"), ""),
    "speed": (ask(speed="standard"), ""),
    "thinking": (ask(thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2048), ""),
    "adaptive": (ask(thinking={"type": "adaptive"}), ""),
    "between_tools": (ask(thinking={"type": "between_tools"}), ""),
    "no_thinking": (ask(thinking={"type": "disabled"}), "straight"),
    "effort": (ask(output_config={"effort": "high"}), ""),
    "format": (ask(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}), '{"a": 1}'),
    "tools_unused": (ask(tools=[WEATHER]), ""),
    "tool": (ask(tools=[WEATHER]), LOOK),
    "tool_only": (ask(tools=[WEATHER]), CALL),
    "two_tools": (ask(tools=[WEATHER]), LOOK + CALL),
    "text_after_tool": (ask(tools=[WEATHER]), LOOK + "Wait."),
    "tool_custom": (ask(tools=[{**WEATHER, "type": "custom", "strict": True}]), LOOK),
    "tool_any": (ask(tools=[WEATHER], tool_choice={"type": "any"}), CALL),
    "tool_named": (ask(tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"}), CALL),
    "tool_none": (ask(tools=[WEATHER], tool_choice={"type": "none"}), ""),
    "tool_single": (
        ask(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
        LOOK + CALL,
    ),
    "tool_cut": (ask(tools=[WEATHER], max_tokens=60), LOOK),
    "tool_malformed": (ask(tools=[WEATHER]), "<call get_weather>city=Bern</call>"),
    "tool_no_object": (ask(tools=[WEATHER]), '<call get_weather>["Bern"]</call>'),
    "tool_no_arguments": (ask(tools=[WEATHER]), "<call get_weather></call>"),
    "server_tool": (ask(tools=[{"type": "web_search_20250305", "name": "web_search"}, WEATHER]), LOOK),
    "tool_result": (ask("go", USED, RESULT, tools=[WEATHER]), "Rain."),
    "tool_error": (ask("go", USED, [{**RESULT[0], "is_error": True}], tools=[WEATHER]), "Oh."),
    "thinking_back": (
        ask(
            "a", [{"type": "thinking", "thinking": "x", "signature": ""}, {"type": "text", "text": "b"}], "c"
        ),
        "",
    ),
    "cache_top_level": (ask(cache_control={"type": "ephemeral", "ttl": "1h"}), ""),
    "nothing_said": (ask(), "<think></think>"),
    "thought_only": (ask(), "<think>endless"),
}


NOT_COUNTED = ("max_tokens", "metadata", "service_tier", "stop_sequences", "extra_body")


async def test_a_stream_is_the_whole_answer(sdk: AsyncAnthropic, engine: Any) -> None:
    usual = engine.reply
    for name, (arguments, reply) in CALLS.items():
        engine.reply = reply or usual
        await check_call(name, arguments, sdk, engine)


async def check_call(name: str, arguments: dict[str, Any], sdk: AsyncAnthropic, engine: Any) -> None:
    engine.seen.clear()
    whole = await sdk.messages.create(**arguments)
    async with sdk.messages.stream(**arguments) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    left, right = (message.to_dict(exclude_none=True) for message in (whole, streamed))
    assert left.pop("id") != right.pop("id"), name
    assert left == right, name
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop"), name
    assert whole.stop_reason in ("end_turn", "max_tokens", "stop_sequence", "tool_use"), name
    prompts = [request.prompt_token_ids for request in engine.seen]
    assert prompts[0] == prompts[1], name
    usage = whole.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert usage.input_tokens + cached == len(prompts[0]), name
    counted = {key: value for key, value in arguments.items() if key not in NOT_COUNTED}
    assert (await sdk.messages.count_tokens(**counted)).input_tokens == len(prompts[0]), name


async def test_an_answer(sdk: AsyncAnthropic, engine: Any) -> None:
    message = await sdk.messages.create(**ask(model="alias"))
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "alias")
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Hello, wörld! 😀"},
    ]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len(engine.encode(engine.reply))
    assert message.usage.cache_read_input_tokens == 3
    assert message.usage.output_tokens_details is not None
    assert 0 < message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens
    assert message._request_id is not None
    assert message._request_id.startswith("req-")


@pytest.mark.parametrize(
    ("name", "reason", "sequence"),
    [
        ("stop_sequence", "stop_sequence", "wör"),
        ("stop_unmet", "end_turn", None),
        ("max_tokens", "max_tokens", None),
        ("huge_max_tokens", "end_turn", None),
        ("tool", "tool_use", None),
        ("tool_cut", "max_tokens", None),
    ],
)
async def test_why_it_stopped(
    name: str, reason: str, sequence: str | None, sdk: AsyncAnthropic, engine: Any
) -> None:
    arguments, reply = CALLS[name]
    engine.reply = reply or engine.reply
    message = await sdk.messages.create(**arguments)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


class TestSmallContext:
    @pytest.fixture
    def max_model_len(self) -> int:
        return 100

    async def test_an_answer_to_the_end_of_the_context(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.reply = "a" * 200
        message = await sdk.messages.create(**ask(max_tokens=32_000))
        assert message.stop_reason == "model_context_window_exceeded"
        assert message.usage.output_tokens == 100 - len(engine.seen[0].prompt_token_ids)

    async def test_a_prompt_that_is_too_long(self, sdk: AsyncAnthropic) -> None:
        with pytest.raises(anthropic.BadRequestError, match="context is 100 tokens") as error:
            await sdk.messages.create(**ask("a" * 200))
        assert error.value.type == "invalid_request_error"


async def test_calls_of_a_reply(sdk: AsyncAnthropic, engine: Any, context: ServerContext) -> None:
    engine.reply = LOOK + CALL
    message = await sdk.messages.create(**ask(tools=[WEATHER]))
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [(use.id, use.name, use.input) for use in uses] == [
        ("toolu_call_0", "get_weather", {"city": "Zürich"}),
        ("toolu_call_1", "get_weather", {"city": "Zürich"}),
    ]
    single = {"type": "auto", "disable_parallel_tool_use": True}
    message = await sdk.messages.create(**ask(tools=[WEATHER], tool_choice=single))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    await sdk.messages.create(**ask(tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"}))
    assert context.reply_format.choices == [  # type: ignore[attr-defined]
        (ToolChoice("auto"), True),
        (ToolChoice("auto"), False),
        (ToolChoice("required", ("get_weather",)), False),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_malformed", {"raw_arguments": "city=Bern"}),
        ("tool_no_object", {"raw_arguments": '["Bern"]'}),
        ("tool_no_arguments", {}),
    ],
)
async def test_input_that_is_no_object(name: str, value: Any, sdk: AsyncAnthropic, engine: Any) -> None:
    arguments, engine.reply = CALLS[name]
    message = await sdk.messages.create(**arguments)
    assert [block.input for block in message.content if block.type == "tool_use"] == [value]


async def test_what_the_model_reads(sdk: AsyncAnthropic, engine: Any) -> None:
    thought = {"type": "thinking", "thinking": "T", "signature": ""}
    text = {"type": "text", "text": "A"}
    after = [*RESULT, {"type": "text", "text": "and?"}]
    await sdk.messages.create(
        **ask("go", [thought, text, *USED], after, system="S", tools=[WEATHER], thinking={"type": "adaptive"})
    )
    prompt = prompt_of(engine)
    assert prompt.startswith("<tools>[{")
    assert "<thinking true>" in prompt.lower()
    assert prompt.partition("<|im_start|>")[2] == (
        "system\nS<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n"
        '<|im_start|>assistant\n<think>T</think>A<call get_weather>{"city": "Zürich"}</call><|im_end|>\n'
        "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_prefill_is_continued(sdk: AsyncAnthropic, engine: Any) -> None:
    engine.reply = " 4."
    message = await sdk.messages.create(**ask("2+2?", "The answer is"))
    assert prompt_of(engine).endswith("<|im_start|>assistant\nThe answer is")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": " 4."}]


async def test_tools_are_hidden_where_none_may_be_called(sdk: AsyncAnthropic, engine: Any) -> None:
    await sdk.messages.create(**ask(tools=[WEATHER], tool_choice={"type": "none"}))
    assert "<tools>" not in prompt_of(engine)


async def test_a_format_constrains_the_engine(sdk: AsyncAnthropic, engine: Any) -> None:
    class Answer(BaseModel):
        a: int

    engine.reply = '{"a": 1}'
    message = await sdk.messages.parse(**ask(), output_format=Answer)
    assert message.parsed_output == Answer(a=1)
    constraint = engine.seen[0].params.constraint
    assert constraint.kind is ConstraintKind.JSON_SCHEMA
    assert '"a"' in constraint.source
    async with sdk.messages.stream(**ask(), output_format=Answer) as stream:
        assert (await stream.get_final_message()).parsed_output == Answer(a=1)


class TestHelpers:
    async def test_text_stream(self, sdk: AsyncAnthropic) -> None:
        async with sdk.messages.stream(**ask()) as stream:
            texts = [text async for text in stream.text_stream]
        assert "".join(texts) == "Hello, wörld! 😀"
        assert len(texts) > 3

    async def test_events_of_the_helper(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.reply = LOOK
        seen: dict[str, list[Any]] = {}
        async with sdk.messages.stream(**ask(tools=[WEATHER])) as stream:
            async for event in stream:
                seen.setdefault(event.type, []).append(event)
        assert "".join(event.thinking for event in seen["thinking"]) == "I need it."
        assert [event.signature for event in seen["signature"]] == [""]
        assert [event.partial_json for event in seen["input_json"]] == ['{"city":"Zürich"}']
        assert [event.index for event in seen["content_block_stop"]] == [0, 1, 2]

    async def test_create_with_stream(self, sdk: AsyncAnthropic) -> None:
        stream = await sdk.messages.create(**ask(), stream=True)
        events = [event async for event in stream]
        assert events[0].type == "message_start"
        assert events[0].message.usage.input_tokens > 0
        assert events[0].message.content == []
        assert events[-2].type == "message_delta"
        assert events[-2].usage.output_tokens > 0

    async def test_a_sync_client(self, url: str) -> None:
        def call() -> str:
            options = {"max_retries": 0, "_strict_response_validation": True}
            with anthropic.Anthropic(auth_token=KEY, base_url=url, **options) as client:
                whole = client.messages.create(**ask(thinking={"type": "disabled"}))
                with client.messages.stream(**ask()) as stream:
                    assert stream.get_final_text() == whole.content[-1].text
                return whole.content[-1].text

        assert await asyncio.to_thread(call) == "Hello, wörld! 😀"

    async def test_tool_runner(self, sdk: AsyncAnthropic, engine: Any) -> None:
        cities = []

        @beta_async_tool
        async def get_weather(city: str) -> str:
            """The weather of a city."""
            cities.append(city)
            return "rain"

        engine.reply = lambda prompt: "It rains." if "tool\nrain" in prompt else LOOK
        runner = sdk.beta.messages.tool_runner(**ask(), tools=[get_weather])
        final = await runner.until_done()
        assert cities == ["Zürich"]
        assert final.content[0].text == "It rains."
        assert final.stop_reason == "end_turn"

    async def test_raw_response(self, sdk: AsyncAnthropic) -> None:
        answer = await sdk.messages.with_raw_response.create(
            **ask(tools=[{"type": "bash_20250124", "name": "bash"}]), extra_body={"mcp_servers": [{}], "x": 1}
        )
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert "tools.0 of type bash_20250124" in answer.headers["warning"]
        assert "mcp_servers" in answer.headers["warning"]
        assert (await answer.parse()).stop_reason == "end_turn"


async def test_thinking_is_not_reported_as_ignored(raw: httpx.AsyncClient) -> None:
    answer = await raw.post("/v1/messages", json=ask(thinking={"type": "adaptive"}))
    assert "warning" not in answer.headers


async def _drain(sdk: AsyncAnthropic) -> None:
    async with sdk.messages.stream(**ask()) as stream:
        async for _ in stream:
            pass


class TestErrors:
    @pytest.mark.parametrize(
        ("more", "kind", "name", "said"),
        [
            ({"model": "gpt"}, anthropic.NotFoundError, "not_found_error", "served: tiny, alias"),
            ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
            ({"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages must have"),
            (
                {"tool_choice": {"type": "any"}},
                anthropic.BadRequestError,
                "invalid_request_error",
                "any needs",
            ),
            (
                {"extra_body": {"temperature": "hot"}},
                anthropic.BadRequestError,
                "invalid_request_error",
                "temperature",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
                anthropic.BadRequestError,
                "invalid_request_error",
                "messages.0.content.0 is an image block",
            ),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_of_the_request(
        self,
        more: dict[str, Any],
        kind: type[anthropic.APIStatusError],
        name: str,
        said: str,
        stream: bool,
        sdk: AsyncAnthropic,
    ) -> None:
        with pytest.raises(kind, match=said) as error:
            await sdk.messages.create(**{**ask(), **more}, stream=stream)
        body = error.value.body
        assert isinstance(body, dict)
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
        assert body["request_id"] == error.value.response.headers["request-id"] == error.value.request_id
        assert error.value.type == name

    @pytest.mark.parametrize(
        ("failure", "kind", "name"),
        [
            (OverloadedError("full", retry_after=3), anthropic.ServiceUnavailableError, "overloaded_error"),
            (EngineDeadError("gone"), anthropic.ServiceUnavailableError, "overloaded_error"),
            (too_many("enough", retry_after=3), anthropic.RateLimitError, "rate_limit_error"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_of_the_server(
        self,
        failure: Exception,
        kind: type[anthropic.APIStatusError],
        name: str,
        stream: bool,
        sdk: AsyncAnthropic,
        engine: Any,
    ) -> None:
        engine.error = failure
        with pytest.raises(kind) as error:
            await sdk.messages.create(**ask(), stream=stream)
        assert error.value.type == name
        assert int(error.value.response.headers["retry-after"]) >= 1

    async def test_of_one_request(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.delta_error = "not finite"
        with pytest.raises(anthropic.InternalServerError, match="not finite") as error:
            await sdk.messages.create(**ask())
        assert error.value.type == "api_error"
        assert error.value.response.headers["x-should-retry"] == "false"

    async def test_within_a_stream(self, sdk: AsyncAnthropic, raw: httpx.AsyncClient, engine: Any) -> None:
        engine.error, engine.fail_after = EngineDeadError("gone"), 15
        with pytest.raises(anthropic.APIStatusError, match="gone") as error:
            await _drain(sdk)
        assert error.value.type == "overloaded_error"
        answer = await raw.post("/v1/messages", json=ask(stream=True))
        last = answer.text.strip().split("\n\n")[-1].split("\n")
        assert last[0] == "event: error"
        payload = json.loads(last[1].removeprefix("data: "))
        assert payload["request_id"] == answer.headers["request-id"]
        assert "message_stop" not in answer.text

    async def test_wrong_key(self, url: str) -> None:
        async with AsyncAnthropic(api_key="sk-other", base_url=url, max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as error:
                await client.messages.create(**ask())
            assert error.value.type == "authentication_error"
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.count_tokens(model="tiny", messages=ask()["messages"])

    async def test_unknown_paths_and_methods(self, sdk: AsyncAnthropic, raw: httpx.AsyncClient) -> None:
        with pytest.raises(anthropic.NotFoundError) as error:
            await sdk.messages.batches.retrieve("batch_1")
        assert error.value.type == "not_found_error"
        answer = await raw.get("/v1/messages")
        assert (answer.status_code, answer.json()["type"]) == (405, "error")
        assert answer.json()["request_id"] == answer.headers["request-id"]
        elsewhere = await raw.get("/v1/messagesx")
        assert "type" not in elsewhere.json()
        assert "request-id" not in elsewhere.headers

    async def test_of_the_body(self, raw: httpx.AsyncClient, config: ServerConfig) -> None:
        text = await raw.post("/v1/messages", content=b"{}", headers={"content-type": "text/plain"})
        assert (text.status_code, text.json()["error"]["type"]) == (415, "invalid_request_error")
        broken = await raw.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
        padded = ask("a" * config.max_body_bytes)
        long = await raw.post("/v1/messages", json=padded)
        assert (long.status_code, long.json()["error"]["type"]) == (413, "invalid_request_error")

    async def test_while_draining(self, sdk: AsyncAnthropic, app: Any) -> None:
        app.state.lifecycle.draining = True
        with pytest.raises(anthropic.ServiceUnavailableError) as error:
            await sdk.messages.create(**ask())
        assert error.value.type == "overloaded_error"

    async def test_without_an_engine(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.error = RuntimeError("secret")
        with pytest.raises(anthropic.InternalServerError) as error:
            await sdk.messages.create(**ask())
        assert "secret" not in str(error.value)


class TestStream:
    async def test_frames(self, raw: httpx.AsyncClient) -> None:
        answer = await raw.post("/v1/messages", json=ask(stream=True))
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = [frame.split("\n") for frame in answer.text.strip().split("\n\n")]
        for name, data in frames:
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
        events = [json.loads(data.removeprefix("data: ")) for name, data in frames if name != "event: ping"]
        start = events[0]["message"]
        assert start["usage"]["input_tokens"] > 0
        assert (start["content"], start["stop_reason"]) == ([], None)
        assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
        assert "[DONE]" not in answer.text

    async def test_pings_while_the_engine_is_silent(self, raw: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 0
        names = []
        async with raw.stream("POST", "/v1/messages", json=ask(stream=True)) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                    engine.go.set()
        assert names[0] == "ping"
        assert next(name for name in names if name != "ping") == "message_start"

    async def test_a_ping_does_not_disturb_the_sdk(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.hold_after = 0
        response = await sdk.messages.create(**ask(), stream=True)  # its head comes with the first ping
        engine.go.set()
        first = await anext(aiter(response))
        assert first.type == "message_start"

    async def test_a_closed_stream_ends_the_work(self, sdk: AsyncAnthropic, engine: Any) -> None:
        engine.hold_after = 15
        async with sdk.messages.stream(**ask()) as stream:
            async for event in stream:
                if event.type == "content_block_delta":
                    break
        while not engine.aborted:
            await asyncio.sleep(0.01)
        assert not engine.active


def agent_request(cch: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What a coding agent sends: a billing line, cached system text and tools, a marked last block."""
    hour = {"type": "ephemeral", "ttl": "1h"}
    tools = [{**WEATHER, "name": f"Tool{at}"} for at in range(30)] + [{**WEATHER, "cache_control": hour}]
    *earlier, last = messages
    *blocks, final = last["content"]
    marked = {**last, "content": [*blocks, {**final, "cache_control": EPHEMERAL}]}
    return {
        "model": "tiny",
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": LINE.format(cch)},
            {"type": "text", "text": "You are an agent.", "cache_control": hour},
            {"type": "text", "text": "Work in /repo."},
        ],
        "messages": [*earlier, marked],
        "tools": tools,
        "thinking": {"type": "enabled", "budget_tokens": 31_999},
        "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
        "stream": True,
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }


class TestCodingAgent:
    headers: ClassVar = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
        "anthropic-dangerous-direct-browser-access": "true",
        "x-app": "cli",
        "x-claude-code-session-id": "0b7d1c9e-session",
        "x-claude-code-agent-id": "agent-1",
        "user-agent": "claude-cli/2.1.36 (external, cli)",
    }

    async def test_a_tool_loop_of_two_turns(self, url: str, engine: Any) -> None:
        engine.reply = lambda prompt: "It rains." if "tool\nrain" in prompt else LOOK
        reminder = {"type": "text", "text": "<system-reminder>Be careful.</system-reminder>"}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [reminder, {"type": "text", "text": "Weather in Zürich?"}]}
        ]
        options = {"max_retries": 0, "_strict_response_validation": True, "default_headers": self.headers}
        async with AsyncAnthropic(auth_token=KEY, base_url=url, **options) as client:
            first = await self.turn(client, agent_request("a1b2c", messages))
            assert first.stop_reason == "tool_use"
            messages.append({"role": "assistant", "content": [block.to_dict() for block in first.content]})
            use = first.content[-1]
            result = {
                "type": "tool_result",
                "tool_use_id": use.id,
                "content": [{"type": "text", "text": "rain"}],
            }
            messages.append({"role": "user", "content": [result]})
            second = await self.turn(client, agent_request("9f8e7", messages))
        assert second.stop_reason == "end_turn"
        assert second.content[0].text == "It rains."
        one, two = (prompt_of(engine, at) for at in (0, 1))
        assert two.startswith(one + LOOK)
        assert "x-anthropic-billing-header" not in two

    async def turn(self, client: AsyncAnthropic, body: dict[str, Any]) -> Any:
        body.pop("stream")
        async with client.beta.messages.stream(**body, betas=["claude-code-20250219"]) as stream:
            return await stream.get_final_message()

    async def test_the_billing_line_changes_no_token(self, raw: httpx.AsyncClient, engine: Any) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        for cch in ("11111", "fffff"):
            answer = await raw.post(
                "/v1/messages?beta=true", json=agent_request(cch, messages), headers=self.headers
            )
            assert answer.status_code == 200
        one, two = engine.seen
        assert one.prompt_token_ids == two.prompt_token_ids
        assert "You are an agent.\nWork in /repo." in prompt_of(engine)
        metrics = (await raw.get("/metrics")).text
        assert re.search(r"^braid_volatile_lines_stripped_total\{.*\} 2\.0$", metrics, re.MULTILINE)

    async def test_its_program_and_wishes_reach_the_engine(self, raw: httpx.AsyncClient, engine: Any) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        await raw.post("/v1/messages", json=agent_request("11111", messages), headers=self.headers)
        asked = engine.seen[0]
        assert (asked.program.program, asked.program.group) == ("agent-1", "0b7d1c9e-session")
        assert asked.intent.min_s == 3600.0
        system, user, whole = asked.intent.boundaries
        assert str(engine.decode(list(asked.prompt_token_ids[:system]))).endswith(
            "Work in /repo.<|im_end|>\n"
        )
        assert str(engine.decode(list(asked.prompt_token_ids[:user]))).endswith("user\nhi<|im_end|>\n")
        assert whole == len(asked.prompt_token_ids)

    async def test_it_can_count(self, raw: httpx.AsyncClient, engine: Any) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        body = agent_request("11111", messages)
        await raw.post("/v1/messages", json=body, headers=self.headers)
        counted = {name: body[name] for name in ("model", "messages", "system", "tools", "thinking")}
        answer = await raw.post("/v1/messages/count_tokens?beta=true", json=counted, headers=self.headers)
        assert answer.json() == {"input_tokens": len(engine.seen[0].prompt_token_ids)}


class TestSwitchedOff:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(strip_volatile_line=False)

    async def test_the_billing_line_stays(self, raw: httpx.AsyncClient, engine: Any) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        await raw.post("/v1/messages", json=agent_request("11111", messages))
        assert "cch=11111" in prompt_of(engine)


async def test_tools_are_counted_whoever_runs_them(raw: httpx.AsyncClient) -> None:
    """Those of other servers are named in a header, which must not grow with the request."""
    tool = {"type": "bash_20250124", "name": "bash"}
    body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
    answer = await raw.post("/v1/messages", json={**body, "tools": [tool] * 257})
    assert answer.status_code == 400
    assert "257" in answer.json()["error"]["message"]
    answer = await raw.post("/v1/messages", json={**body, "tools": [tool] * 256})
    assert answer.status_code == 200
    assert "192 more" in answer.headers["warning"]
