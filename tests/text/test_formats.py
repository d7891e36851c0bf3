"""Every format: what realistic replies mean, that no cut of the text changes it, and that transformers agrees."""

from __future__ import annotations

import codecs
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.text.format_data import by_name, formats
from braid.text.model_format import TemplateFormat
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart
from braid.text.tools import Tool
from braid.text.wire import wire_of

TOOLS = (
    Tool(
        name="get_weather",
        description="Weather of a city.",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "where": {"type": "object"},
            },
            "required": ["city"],
        },
    ),
    Tool(
        name="bash",
        parameters={
            "type": "object",
            "properties": {"command": {"type": "string"}},
            "required": ["command"],
        },
    ),
)
HARD = {"city": 'Zü "日" \\ {[}] </tool_call> \n😀', "where": {"a": [1, {"b": "}"}]}}


class NoSpecial:
    """A vocabulary without special tokens."""

    special_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()

    def token_id(self, token: str) -> int | None:
        return None

    def token_text(self, id: int) -> str:
        return ""


class Whole(NamedTuple):
    """A reply, joined."""

    reasoning: str
    content: str
    calls: tuple[tuple[str, str, bool], ...]


def make(name: str) -> TemplateFormat:
    data = by_name(name)
    return TemplateFormat(
        name,
        data.template,
        wire_of(data.wire),
        NoSpecial(),
        reasons=True,
        call_id=data.call_id,
        shell=data.shell,
    )


FORMATS = {name: make(name) for name in formats()}


def join(parts: Iterable[ReplyPart]) -> Whole:
    reasoning = content = ""
    calls: list[list[Any]] = []
    for part in parts:
        match part:
            case Reasoning(text):
                assert text
                reasoning += text
            case Content(text):
                assert text
                content += text
            case CallStart(number, id, name):
                assert number == len(calls)
                assert id
                calls.append([name, "", False])
            case CallArguments(number, text):
                assert number == len(calls) - 1
                assert not calls[-1][2]
                calls[-1][1] += text
            case CallEnd(number):
                assert number == len(calls) - 1
                calls[-1][2] = True
    return Whole(reasoning, content, tuple((name, text, ended) for name, text, ended in calls))


def read(name: str, pieces: Iterable[str], *, prompt: str = "", tools: Sequence[Tool] = TOOLS) -> Whole:
    reader = FORMATS[name].reader(prompt=prompt, tools=tools)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    parts += reader.finish()
    whole = join(parts)
    assert reader.num_calls == len(whole.calls)
    return whole


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def qwen_coder(name: str, arguments: dict[str, str]) -> str:
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


def glm(name: str, arguments: dict[str, str]) -> str:
    lines = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{lines}</tool_call>"


def deepseek(calls: Sequence[tuple[str, Any]], *, fenced: bool) -> str:
    inner = (
        [f"function<｜tool▁sep｜>{name}\n```json\n{dumps(args)}\n```" for name, args in calls]
        if fenced
        else [f"{name}<｜tool▁sep｜>{dumps(args)}" for name, args in calls]
    )
    joined = ("\n" if fenced else "").join(
        f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in inner
    )
    return f"<｜tool▁calls▁begin｜>{joined}<｜tool▁calls▁end｜>"


def calls_text(name: str, calls: Sequence[tuple[str, Any]]) -> str:
    """Calls as a model of that format writes them."""
    match name:
        case "hermes":
            bodies = [dumps({"name": call, "arguments": args}) for call, args in calls]
            return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
        case "qwen3_coder" | "glm45":
            write = qwen_coder if name == "qwen3_coder" else glm
            texts = [
                (call, {key: v if isinstance(v, str) else dumps(v) for key, v in args.items()})
                for call, args in calls
            ]
            return "\n".join(write(call, args) for call, args in texts)
        case "llama3_json":
            return "; ".join(dumps({"name": call, "parameters": args}) for call, args in calls)
        case "mistral":
            return "".join(f"[TOOL_CALLS]{call}[ARGS]{dumps(args)}" for call, args in calls)
        case "mistral_list":
            return "[TOOL_CALLS]" + dumps([{"name": call, "arguments": args} for call, args in calls])
        case "deepseek_v3" | "deepseek_v31":
            return deepseek(calls, fenced=name == "deepseek_v3")
        case "harmony":
            heads = [f"<|channel|>commentary to=functions.{call} <|constrain|>json" for call, _ in calls]
            texts = [
                f"{head}<|message|>{dumps(args)}<|call|>"
                for head, (_, args) in zip(heads, calls, strict=True)
            ]
            return "<|start|>assistant".join(texts)
        case "gemma":
            return "".join(
                f"<start_function_call>call:{call}{gemma(args)}<end_function_call>" for call, args in calls
            )
        case "bash":
            return "\n".join(f"```bash\n{args['command']}\n```" for _, args in calls)
    raise AssertionError(name)


def gemma(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{gemma(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return f"<escape>{value}<escape>"
    return dumps(value)


CALLING = [name for name, data in formats().items() if "tool_calls" in data.template["fields"]]
XML = ("qwen3_coder", "glm45", "gemma")
THINK = {
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    "mistral": ("[THINK]", "[/THINK]"),
    "mistral_list": ("[THINK]", "[/THINK]"),
    "gemma": ("<|channel>thought", "<channel|>"),
}


def said(name: str, text: str) -> str:
    """Content as the format writes it."""
    return f"<|channel|>final<|message|>{text}<|return|>" if name == "harmony" else text


def before_call(name: str, text: str) -> str:
    if name == "harmony":
        return f"<|channel|>commentary<|message|>{text}<|end|><|start|>assistant"
    return text + "\n\n"


def thought(name: str, text: str) -> str:
    begin, end = THINK.get(name, ("<think>\n", "\n</think>\n\n"))
    return f"{begin}{text}{end}"


def some_calls(name: str) -> list[tuple[str, Any]]:
    if name == "bash":
        return [("bash", {"command": 'grep -r "x\\" é" . | wc -l\nls {a,b}'}), ("bash", {"command": "pwd"})]
    hard = dict(HARD)
    if name in XML:
        hard["city"] = 'Zü "日" \\ {[}] 😀 <b>'
    return [
        ("get_weather", hard),
        ("get_weather", {"city": "Oslo", "days": 3, "exact": True}),
    ]


def samples(name: str) -> dict[str, tuple[str, Whole]]:
    plain = "2 < 3, {x: [1]} `y`.\n\nAn é, 日.\n"
    cases = {"plain": (said(name, plain), Whole("", plain, ()))}
    thinks = thought(name, "Hm, 2 < 3.\n\nSo {yes}.")
    cases["thought"] = (thinks + said(name, "Yes."), Whole("Hm, 2 < 3.\n\nSo {yes}.", "Yes.", ()))
    if name not in CALLING:
        return cases
    calls = some_calls(name)
    if name == "bash":
        calls = calls[:1]
    one, wanted = calls_text(name, calls[:1]), tuple((call, dumps(args), True) for call, args in calls)
    cases["call"] = (one, Whole("", "", wanted[:1]))
    cases["calls"] = (calls_text(name, calls), Whole("", "", wanted))
    cases["thought, call"] = (thinks + one, Whole("Hm, 2 < 3.\n\nSo {yes}.", "", wanted[:1]))
    if name != "llama3_json":
        cases["text, call"] = (before_call(name, "Let me see.") + one, Whole("", "Let me see.", wanted[:1]))
    return cases


SAMPLES = {
    f"{name}: {case}": (name, text, wanted)
    for name in FORMATS
    for case, (text, wanted) in samples(name).items()
}
BROKEN = {
    "hermes": [
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call> on',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"; "arguments": {}}</tool_call>',
        "<tool_call>",
        "<tool_call><tool_call>x",
        "a </think> b </tool_call> c",
        "<tool_cal",
    ],
    "qwen3_coder": [
        "<tool_call>\n<function=f>\n<parameter=a>\n1",
        "<tool_call>\n{}\n</tool_call>",
        "<function=f></function>",
    ],
    "glm45": [
        "<tool_call>f\n<arg_key>a</arg_key>",
        "<tool_call></tool_call>",
        "<tool_call>f</tool",
    ],
    "llama3_json": [
        '{"name": "unknown", "parameters": {}}',
        '{"name": "bash"}',
        '{"name": "bash", "parameters": 3} x',
        '{"a": 1}',
    ],
    "mistral": [
        "[TOOL_CALLS]",
        "[TOOL_CALLS]bash[ARGS]no",
        "[TOOL_CALLS] bash",
        "[TOOL_CALLS]bash[ARG",
    ],
    "mistral_list": [
        "[TOOL_CALLS][]",
        "[TOOL_CALLS] {}",
        '[TOOL_CALLS][{"name": "f"',
        "[TOOL_CALLS][3]",
    ],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n[1]\n```<｜tool▁call▁end｜>",
    ],
    "deepseek_v31": [
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>no<｜tool▁call▁end｜> x",
        "<｜tool▁calls▁begin｜>text",
    ],
    "harmony": [
        "plain text",
        "<|channel|>commentary to=functions.f <|message|>no json<|call|>",
        "<|start|>assistant",
        "<|channel|>nowhere<|message|>x",
    ],
    "gemma": [
        "<start_function_call>call:f{a:<end_function_call>",
        "<start_function_call>call:f",
        "call:f{}",
    ],
    "bash": [
        "```bash\nls",
        "```python\nprint()\n```",
        "x ```bash\nls\n```",
        "```bash",
    ],
    "reasoning": [
        "</think>",
        "<tool_call>{}</tool_call>",
    ],
}
TEXTS = [(name, text) for name, text, _ in SAMPLES.values()]
TEXTS += [(name, text) for name, texts in BROKEN.items() for text in texts]


@pytest.mark.parametrize("case", SAMPLES)
def test_a_reply_means_what_it_says(case: str) -> None:
    name, text, wanted = SAMPLES[case]
    got = read(name, [text])
    assert (got.reasoning, got.content) == (wanted.reasoning, wanted.content)
    assert [(call, json.loads(args), ended) for call, args, ended in got.calls] == [
        (call, json.loads(args), ended) for call, args, ended in wanted.calls
    ]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_what_is_no_call_is_content_as_it_was_written(name: str, text: str) -> None:
    assert read(name, [text]) == Whole("", text, ())


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_no_cut_changes_the_reply(name: str, text: str) -> None:
    wanted = read(name, [text])
    assert read(name, text) == wanted
    for at in range(1, len(text)):
        assert read(name, [text[:at], text[at:]]) == wanted, at
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert read(name, [decoder.decode(bytes([byte])) for byte in text.encode()]) == wanted


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_a_reply_cut_short_is_read_alike_and_loses_nothing(name: str, text: str) -> None:
    begin = THINK.get(name, ("<think>",))[0]
    for end in range(len(text)):
        short = text[:end]
        whole = read(name, [short])
        if end % 4 == 0:
            assert read(name, [short[at : at + 5] for at in range(0, end, 5)]) == whole
        if not whole.calls and begin not in short and name != "harmony":
            assert whole.content in (short, short.rstrip())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_texts_and_cuts(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    random_ = random.Random(data.draw(st.integers(0, 2**32)))
    pool = [text for other, text in TEXTS if other == name]
    text = "".join(
        data.draw(
            st.lists(
                st.sampled_from(pool).map(lambda t: _slice(t, random_)) | st.text(max_size=8), max_size=6
            )
        )
    )
    wanted = read(name, [text])
    cuts = sorted(random_.randrange(len(text) + 1) for _ in range(random_.randrange(8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(name, pieces) == wanted
    assert read(name, text) == wanted


def _slice(text: str, random_: random.Random) -> str:
    begin, end = sorted(random_.randrange(len(text) + 1) for _ in range(2))
    return text if random_.random() < 0.5 else text[begin:end]


PARSED = [name for name in SAMPLES if name != "llama3_json: calls"]


@pytest.mark.parametrize("case", PARSED)
def test_transformers_parses_the_same(case: str) -> None:
    from transformers.utils.chat_parsing import parse_response

    name, text, _ = SAMPLES[case]
    if name == "hermes" and "call" in case:
        text = text.replace("</tool_call> \\n", "")  # its parser ends a call there, within the string
    whole = read(name, [text])
    template = by_name(name).template
    parsed = parse_response(text, template, prefix="", tools=[tool.as_openai() for tool in TOOLS])
    texts = [parsed.get(field) or "" for field in ("preamble", "content", "unmarked")]
    assert whole.content.strip() == "\n".join(filter(None, (text.strip() for text in texts)))
    assert whole.reasoning == (parsed.get("reasoning_content") or "")
    calls = parsed.get("tool_calls") or []
    assert [(call, json.loads(args)) for call, args, _ in whole.calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in calls
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_without_tools_a_call_is_content(name: str) -> None:
    if name not in CALLING:
        return
    text = calls_text(name, [("bash", {"command": "ls"})])
    whole = read(name, text, tools=())
    assert whole.calls == ()
    assert whole.content == text


@pytest.mark.parametrize("name", [name for name in CALLING if name not in (*XML, "bash")])
def test_arguments_come_as_they_are_written(name: str) -> None:
    text = calls_text(name, [("get_weather", HARD)])
    reader = FORMATS[name].reader(prompt="", tools=TOOLS)
    counts = [sum(isinstance(part, CallArguments) for part in reader.feed(char)) for char in text]
    assert sum(counts) == len(dumps(HARD))


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "glm45", "deepseek_v3", "reasoning"])
@pytest.mark.parametrize(
    "header", ["<|im_start|>assistant\n", "<｜Assistant｜>", "<|assistant|>", "unknown: "]
)
def test_thinking_that_the_prompt_opened(name: str, header: str) -> None:
    prompt = f"<think> in a question {header}<think>\n"
    reader = FORMATS[name].reader(prompt=prompt, tools=())
    assert reader.in_reasoning
    assert join([*reader.feed("a\n</think>\n\nb"), *reader.finish()]) == Whole("a", "b", ())
    assert not reader.in_reasoning
    closed = FORMATS[name].reader(prompt=f"{header}<think>\n\n</think>\n\n", tools=())
    assert not closed.in_reasoning
    assert join([*closed.feed("b"), *closed.finish()]) == Whole("", "b", ())


def test_calls_have_ids_of_the_models_shape() -> None:
    for name, length in (("hermes", 29), ("mistral", 9), ("mistral_list", 9)):
        reader = FORMATS[name].reader(prompt="", tools=TOOLS)
        parts = reader.feed(calls_text(name, [("bash", {"command": "a"}), ("bash", {"command": "b"})]))
        ids = [part.id for part in parts if isinstance(part, CallStart)]
        assert len(set(ids)) == 2
        assert all(len(id) == length and id.replace("_", "").isalnum() for id in ids)


@pytest.mark.parametrize("name", FORMATS)
def test_long_replies_take_linear_work(name: str) -> None:
    """Characters that are held or copied stay few, however long a reply grows."""
    reader = FORMATS[name].reader(prompt="", tools=TOOLS)
    scanner = reader._scanner  # type: ignore[attr-defined]
    longest = 0
    for _ in range(3000):
        reader.feed("word <b> \n {x}")
        longest = max(longest, len(scanner._text))
    assert longest < 2048


def test_reading_calls_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from braid.text.detect import detect_format, warm_up\n"
        "class T:\n"
        "    special_token_ids = eos_token_ids = frozenset()\n"
        "    token_id = staticmethod(lambda token: None)\n"
        "    token_text = staticmethod(lambda id: '')\n"
        "hermes = detect_format('<tool_call> tools', T())\n"
        "warm_up(hermes)\n"
        "hermes.reader(prompt='', tools=()).feed('<think>x')\n"
        "assert hermes.name == 'hermes' and 'transformers' not in sys.modules\n"
        "warm_up(detect_format(None, T(), name='qwen3-coder'))\n"
        "assert 'transformers' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_is_a_response_template() -> None:
    for format_ in FORMATS.values():
        format_._parser.load()


@pytest.mark.parametrize(
    ("name", "head", "tag"),
    [
        ("qwen3_coder", "<tool_call>\n<function=get_weather>\n", "<parameter=city>"),
        ("glm45", "<tool_call>get_weather\n", "<arg_key></arg_key><arg_value>"),
    ],
)
def test_tags_that_nobody_closes_do_not_take_for_ever(name: str, head: str, tag: str) -> None:
    """The search for their ends begins anew at each: minutes for one long reply, in which nobody else is served."""
    text = head + tag * 10_000 + "</tool_call>"
    assert read(name, [text]) == Whole("", text, ())


def test_a_marker_that_may_go_on_for_ever_is_given_up() -> None:
    """Every character was judged with all before it."""
    text = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>" + "a" * 30_000
    assert read("deepseek_v3", [text]) == Whole("", text, ())
