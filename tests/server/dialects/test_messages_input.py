"""From Anthropic's blocks to OpenAI's messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.errors import InvalidParameterError
from braid.server.dialects.messages_input import (
    Conversation,
    read_conversation,
    without_volatile_line,
)

LINE = "x-anthropic-billing-header: cc_version=2.1.36.abc; cc_entrypoint=cli; cch=1f2e3;"
MARK = {"type": "ephemeral"}
USE = {"type": "tool_use", "id": "toolu_call_7", "name": "ls", "input": {"path": "/"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_call_7", "content": "bin"}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def read(*messages: dict[str, Any], system: Any = None, **more: Any) -> Conversation:
    return read_conversation(system, messages, **more)


def test_a_string_is_one_block_of_text() -> None:
    whole = read({"role": "user", "content": "hi"}, system="be brief")
    parts = read(user(text("hi")), system=[text("be brief")])
    expected = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert whole.messages == parts.messages == expected


def test_turns_of_one_role_are_one_turn() -> None:
    talk = read(
        user(text("a")),
        user(text("b"), text("c")),
        assistant(text("d")),
        assistant(text("e")),
        user(text("f")),
    )
    assert [message["content"] for message in talk.messages] == ["a\nb\nc", "de", "f"]
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "user"]


def test_a_tool_loop_becomes_calls_and_tool_messages() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    talk = read(user(text("go")), assistant(thought, text("I look."), USE), user(RESULT, text("and now?")))
    function = {"name": "ls", "arguments": '{"path":"/"}'}
    assert talk.messages[1] == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"id": "call_7", "type": "function", "function": function}],
        "reasoning_content": "hm",
    }
    assert talk.messages[2:] == [
        {"role": "tool", "tool_call_id": "call_7", "content": "bin", "name": "ls"},
        {"role": "user", "content": "and now?"},
    ]


def test_results_come_before_text_wherever_they_stand() -> None:
    other = {"type": "tool_result", "tool_use_id": "b", "content": [text("x"), text("y")]}
    talk = read(user(text("go")), assistant(USE), user(text("see"), RESULT), user(other))
    assert [message["role"] for message in talk.messages[2:]] == ["tool", "tool", "user"]
    assert talk.messages[3]["content"] == "x\ny"


def test_an_assistant_that_only_calls_has_null_content() -> None:
    assert read(user(text("go")), assistant(USE), user(RESULT)).messages[1]["content"] is None


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, "Error: "),
        ("no such file", "Error: no such file"),
        ("Error: boom", "Error: boom"),
        ([text("<tool_use_error>bad</tool_use_error>")], "<tool_use_error>bad</tool_use_error>"),
    ],
)
def test_a_failed_result_says_so(content: Any, shown: str) -> None:
    failed = {**RESULT, "content": content, "is_error": True}
    assert read(user(text("go")), assistant(USE), user(failed)).messages[2]["content"] == shown


def test_a_result_without_content_is_empty() -> None:
    bare = {"type": "tool_result", "tool_use_id": "x"}
    assert read(user(bare)).messages == [{"role": "tool", "tool_call_id": "x", "content": ""}]


def test_texts_of_other_blocks() -> None:
    found = {"type": "search_result", "title": "T", "source": "S", "content": [text("one"), text("two")]}
    plain = {"type": "text", "media_type": "text/plain", "data": "page"}
    document = {"type": "document", "source": plain, "title": "A", "context": "B"}
    named = {**RESULT, "content": [{"type": "tool_reference", "tool_name": "grep"}]}
    talk = read(user(found), user(document), user(named))
    assert [message["content"] for message in talk.messages] == ["grep", "T\nS\none\ntwo\nA\nB\npage"]


def test_redacted_thinking_is_left_out() -> None:
    talk = read(
        user(text("go")), assistant({"type": "redacted_thinking", "data": "xx"}, text("a")), user(text("b"))
    )
    assert talk.messages[1] == {"role": "assistant", "content": "a"}


def test_a_final_assistant_text_is_to_be_continued() -> None:
    assert read(user(text("go")), assistant(text("The answer is ("))).prefill
    assert not read(user(text("go"))).prefill
    with pytest.raises(InvalidParameterError, match="tool_result must follow"):
        read(user(text("go")), assistant(USE))


def test_system_messages_among_the_others() -> None:
    first = read({"role": "system", "content": "two"}, user(text("go")), system="one")
    assert first.messages[0] == {"role": "system", "content": "one\ntwo"}
    later = read(user(text("go")), {"role": "system", "content": [text("now")]}, system="one")
    assert [message["role"] for message in later.messages] == ["system", "user", "system"]


class TestVolatileLine:
    def test_its_block_is_dropped(self) -> None:
        talk = read(user(text("hi")), system=[text(LINE), text("You are an agent.")])
        assert talk.messages[0]["content"] == "You are an agent."
        assert talk.num_stripped == 1

    def test_only_the_line_goes_where_text_follows(self) -> None:
        assert without_volatile_line(f"{LINE}\n\nYou are an agent.") == "You are an agent."
        assert without_volatile_line(LINE) == ""

    def test_a_system_of_nothing_else_is_no_message(self) -> None:
        assert read(user(text("hi")), system=[text(LINE)]).messages == [{"role": "user", "content": "hi"}]

    def test_other_places_are_not_touched(self) -> None:
        inside = f"see {LINE}"
        talk = read(user(text(LINE)), system=[text(inside)])
        assert [message["content"] for message in talk.messages] == [inside, LINE]
        assert talk.num_stripped == 0

    def test_the_switch(self) -> None:
        talk = read(user(text("hi")), system=[text(LINE)], strip_volatile_line=False)
        assert talk.messages[0]["content"] == LINE
        assert talk.num_stripped == 0

    def test_system_messages_too(self) -> None:
        talk = read({"role": "system", "content": LINE}, user(text("hi")))
        assert len(talk.messages) == 1
        assert talk.num_stripped == 1


class TestCacheMarks:
    def test_a_mark_ends_where_its_message_ends(self) -> None:
        hour = {"type": "ephemeral", "ttl": "1h"}
        talk = read(
            user(text("go")),
            assistant(USE),
            user({**RESULT, "cache_control": MARK}, text("a"), text("b", cache_control=hour)),
            system=[text("s", cache_control=hour)],
        )
        assert talk.breakpoints == (1, 4, 5)

    def test_tools_and_top_level(self) -> None:
        talk = read(
            user(text("a")), tools=[{"name": "x", "cache_control": MARK}], cache_control=MARK, system="s"
        )
        assert talk.breakpoints == (1, 2)

    def test_equal_ends_are_one_breakpoint(self) -> None:
        talk = read(user(text("a", cache_control=MARK), text("b", cache_control=MARK)), cache_control=MARK)
        assert talk.breakpoints == (1,)
        assert len(talk.marks) == 3

    def test_a_mark_on_nothing_is_none(self) -> None:
        assert read(user(text("a")), system=[text(LINE, cache_control=MARK)]).marks == []

    @pytest.mark.parametrize(
        "control", ["ephemeral", {}, {"type": "persistent"}, {"type": "ephemeral", "ttl": "2h"}, {"type": []}]
    )
    def test_wrong_ones_are_refused(self, control: Any) -> None:
        with pytest.raises(
            InvalidParameterError, match=r"^messages\.0\.content\.0\.cache_control must"
        ) as error:
            read(user(text("a", cache_control=control)))
        assert error.value.param == "cache_control"

    def test_more_than_four_are_refused(self) -> None:
        with pytest.raises(InvalidParameterError, match="at most 4 blocks may have cache_control, got 5"):
            read(user(*(text("a", cache_control=MARK) for _ in range(4))), cache_control=MARK)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            {"role": "tool", "content": "a"},
            "messages.0.role must be one of user, assistant, system, got 'tool'",
        ),
        ({"content": "a"}, "messages.0.role must be one of"),
        ({"role": "user"}, "messages.0.content is missing"),
        ({"role": "user", "content": 3}, "messages.0.content must be a string or a list of blocks, got 3"),
        (user("a"), "messages.0.content.0 must be an object with a type"),
        (user({"text": "a"}), "messages.0.content.0 must be an object with a type"),
        (user({"type": "text"}), "messages.0.content.0.text must be a string, got None"),
        (user({"type": "container_upload"}), "messages.0.content.0.type 'container_upload' is not supported"),
        (
            user({"type": "image", "source": {}}),
            "messages.0.content.0 is an image block: this model reads text",
        ),
        (
            user({"type": "document", "source": {"type": "base64"}}),
            "messages.0.content.0 is a document block",
        ),
        (user({**RESULT, "tool_use_id": 4}), "messages.0.content.0.tool_use_id must be a string, got 4"),
        (user({**RESULT, "is_error": "no"}), "messages.0.content.0.is_error must be a boolean"),
        (user({**RESULT, "content": [{"type": "image"}]}), "messages.0.content.0.content.0 is an image"),
        (assistant({**USE, "input": "x"}), "messages.0.content.0.input must be an object, got 'x'"),
        (assistant({"type": "server_tool_use"}), "messages.0.content.0.type 'server_tool_use' is not"),
        ({"role": "system", "content": [USE]}, "messages.0.content.0.type 'tool_use' is not supported"),
    ],
)
def test_what_is_wrong_is_named(message: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError) as error:
        read(message)
    assert str(error.value).startswith(said)
    assert error.value.param == "messages"


_NAMES = st.sampled_from(
    [
        "type",
        "text",
        "content",
        "role",
        "id",
        "name",
        "input",
        "tool_use_id",
        "cache_control",
        "ttl",
        "is_error",
        "source",
        "data",
        "title",
        "thinking",
    ]
)
_WORDS = st.sampled_from(
    [
        "text",
        "tool_use",
        "tool_result",
        "thinking",
        "image",
        "document",
        "search_result",
        "ephemeral",
        "5m",
        "x",
        LINE,
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=12,
)
_TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": _VALUES}
)


@given(
    messages=st.lists(_TURNS, max_size=3),
    system=st.none() | st.lists(st.dictionaries(_NAMES, _VALUES), max_size=2),
)
def test_whatever_is_sent_is_read_or_refused(messages: list[dict[str, Any]], system: Any) -> None:
    try:
        talk = read(*messages, system=system)
    except InvalidParameterError:
        return
    assert all(isinstance(message["content"], str | None) for message in talk.messages)
    assert list(talk.breakpoints) == sorted(set(talk.breakpoints))
    assert all(0 < number <= len(talk.messages) for number in talk.breakpoints)
