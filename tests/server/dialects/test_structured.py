from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher

from braid.core.constraint import MAX_SOURCE_BYTES, ConstraintKind

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]}
LARK = 'start: "yes" | no\nno: "no" /[!?]*/'
GBNF = 'root ::= "yes" | no\nno ::= "no" [!?]*'


def body(route: str, **fields: Any) -> dict[str, Any]:
    return {**({"messages": MESSAGES} if route == CHAT else {"prompt": "hi"}), **fields}


def json_schema(**spec: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": spec}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": json_schema(name="n", schema=SCHEMA, strict=True, description="d")},
        {"response_format": json_schema(schema=SCHEMA)},
        {"response_format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": SCHEMA},
    ],
    ids=str,
)
async def test_a_schema_reaches_the_engine(
    client: httpx.AsyncClient, engine: Any, route: str, fields: dict[str, Any]
) -> None:
    answer = await client.post(route, json=body(route, **fields))
    assert answer.status_code == 200, answer.text
    constraint = engine.seen[0].params.constraint
    assert constraint.kind is ConstraintKind.JSON_SCHEMA
    assert json.loads(constraint.source) == SCHEMA
    assert list(json.loads(constraint.source)["properties"]) == ["b", "a"]
    assert constraint.param == next(iter(fields))


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"guided_json": {}}, "json_schema", "{}"),
        ({"regex": "[a-z]+"}, "regex", "[a-z]+"),
        ({"guided_regex": "[a-z]+"}, "regex", "[a-z]+"),
        ({"structured_outputs": {"regex": "[a-z]+"}}, "regex", "[a-z]+"),
        ({"grammar": LARK}, "lark", LARK),
        ({"guided_grammar": LARK}, "lark", LARK),
        ({"structured_outputs": {"grammar": LARK}}, "lark", LARK),
        ({"guided_choice": ["a", 'b"\n']}, "lark", 'start: "a" | "b\\"\\n"'),
        ({"structured_outputs": {"choice": ["a"]}}, "lark", 'start: "a"'),
    ],
    ids=str,
)
async def test_other_constraints_reach_the_engine(
    client: httpx.AsyncClient, engine: Any, route: str, fields: dict[str, Any], kind: str, source: str
) -> None:
    answer = await client.post(route, json=body(route, **fields))
    assert answer.status_code == 200, answer.text
    constraint = engine.seen[0].params.constraint
    assert (constraint.kind.value, constraint.source) == (kind, source)


@pytest.mark.parametrize("name", ["grammar", "guided_grammar", "ebnf"])
async def test_gbnf_becomes_lark(client: httpx.AsyncClient, engine: Any, name: str) -> None:
    assert (await client.post(CHAT, json=body(CHAT, **{name: GBNF}))).status_code == 200
    source = engine.seen[0].params.constraint.source
    assert "start:" in source
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(source)) == ""


@pytest.mark.parametrize("choices", [["a"], ['"', "\\", "\n\t", "é😀", "/x/", "<|im_end|>", "a b"]])
async def test_choices_are_a_grammar(client: httpx.AsyncClient, engine: Any, choices: list[str]) -> None:
    await client.post(TEXT, json=body(TEXT, guided_choice=choices))
    grammar = LLMatcher.grammar_from_lark(engine.seen[0].params.constraint.source)
    assert LLMatcher.validate_grammar(grammar) == ""


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"guided_choice": [], "guided_regex": "", "grammar": "", "structured_outputs": None},
        {"structured_outputs": {}},
    ],
    ids=str,
)
async def test_nothing_is_asked_for(
    client: httpx.AsyncClient, engine: Any, route: str, fields: dict[str, Any]
) -> None:
    assert (await client.post(route, json=body(route, **fields))).status_code == 200
    assert engine.seen[0].params.constraint is None


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": {"type": "xml"}}, "type"),
        ({"response_format": {"type": "structural_tag"}}, "type"),
        ({"response_format": {"type": 5}}, "type"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 5}}, "json_schema"),
        ({"response_format": json_schema(name="n")}, "schema"),
        ({"response_format": json_schema(schema=[1])}, "schema"),
        ({"response_format": json_schema(schema=True)}, "schema"),
        ({"response_format": json_schema(schema={}, name="a b")}, "name"),
        ({"response_format": json_schema(schema={}, name="n" * 65)}, "name"),
        ({"response_format": json_schema(schema={}, name=7)}, "name"),
        ({"response_format": json_schema(schema={}, strict="yes")}, "strict"),
        ({"response_format": json_schema(schema={}, description=1)}, "description"),
        ({"structured_outputs": {"structural_tag": {}, "regex": "a"}, "regex": "a"}, "exclude"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "exclude"),
        ({"structured_outputs": {"regex": 5}}, "regex"),
        ({"structured_outputs": {"choice": [1]}}, "choice"),
        ({"guided_json": "{"}, "JSON"),
        ({"guided_json": "[]"}, "object"),
        ({"guided_json": '{"a":' * 120 + "1" + "}" * 120}, "deeper"),
        ({"guided_choice": ["a", ""]}, "empty"),
        ({"guided_choice": ["a"] * 4097}, "4096"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"regex": "a" * (MAX_SOURCE_BYTES + 1)}, "bytes"),
        ({"grammar": "nonsense"}, "Lark"),
        ({"grammar": 'root ::= "a'}, "GBNF"),
        ({"grammar": 'root ::= "\\'}, "GBNF"),
        ({"grammar": "root ::= " + "(" * 5000}, "GBNF"),
        ({"grammar": "root ::= " + '"a" ' * 20_000}, "characters"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "exclude"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bad_constraints_name_themselves(
    client: httpx.AsyncClient, engine: Any, route: str, fields: dict[str, Any], named: str
) -> None:
    answer = await client.post(route, json=body(route, **fields))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] in fields
    assert named in error["message"]
    assert len(error["message"]) < 300
    assert not engine.seen


async def test_a_list_of_wrong_choices_is_one_error(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json=body(CHAT, guided_choice=[None] * 1000))
    assert answer.json()["error"]["param"] == "guided_choice"


@pytest.mark.parametrize(("depth", "status"), [(40, 200), (63, 400)])
async def test_deep_schemas(client: httpx.AsyncClient, depth: int, status: int) -> None:
    answer = await client.post(CHAT, json=body(CHAT, guided_json=nested(depth)))
    assert answer.status_code == status


async def test_blank_lines_before_a_grammar_cost_no_more_than_others(client: httpx.AsyncClient) -> None:
    """A search that began anew at every line took hours for these."""
    answer = await client.post(CHAT, json=body(CHAT, grammar="\n" * 200_000))
    assert answer.status_code == 400
    answer = await client.post(CHAT, json=body(CHAT, grammar="\n" * 200_000 + " start: 'a'"))
    assert answer.status_code == 200


async def test_equal_choices_are_one(client: httpx.AsyncClient, engine: Any) -> None:
    answer = await client.post(CHAT, json=body(CHAT, guided_choice=["a", "b", "a"]))
    assert answer.status_code == 200
    assert engine.seen[-1].params.constraint.source == 'start: "a" | "b"'
