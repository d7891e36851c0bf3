"""``docs/api.md`` says all there is, and nothing else: routes, fields, headers, errors, metrics, options, log lines."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel
from starlette.routing import Route

from braid.cli.app import app as command
from braid.core.errors import BraidError
from braid.core.program import Applied
from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.dialects import fields as dialect_fields
from braid.server.dialects import messages, responses_schema, schemas
from braid.server.dialects.embeddings import EMBEDDING_UNSUPPORTED, EmbeddingRequest
from braid.server.dialects.messages_schema import CountRequest, MessagesRequest, OutputConfig, Thinking
from braid.server.dialects.responses_schema import ReasoningFields, ResponsesRequest, TextFields
from braid.server.dialects.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
)
from braid.server.dialects.structured import StructuredFields, StructuredOutputs
from braid.server.observe.config import ObserveConfig
from braid.server.observe.metrics import OUTCOME_REASONS, metric_rows
from braid.server.programs.identity import ROWS
from braid.server.programs.intent import CONTROLS, FIELDS
from braid.server.programs.sessions import PinRequest
from braid.text.format_data import formats

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "braid" / "server"
PAGE = (ROOT / "docs" / "api.md").read_text()
CODE = re.compile(r"`([^`]+)`")
DIALECTS: dict[str, type[BaseModel]] = {
    "C": ChatRequest,
    "T": CompletionRequest,
    "R": ResponsesRequest,
    "M": MessagesRequest,
}
MINIMAL: dict[str, dict[str, Any]] = {
    "C": {"messages": []},
    "T": {"prompt": "x"},
    "R": {"input": "x"},
    "M": {"messages": [], "max_tokens": 1},
    "/tokenize": {"prompt": "x"},
}
NO_HEADERS = {"in-memory", "latin-1", "no-cache", "request-log", "utf-8", "utf-16"}
"""Literals of the server's code that look like headers."""
SHORT_HEADERS = {
    "authorization",
    "connection",
    "cookie",
    "date",
    "host",
    "origin",
    "traceparent",
    "tracestate",
    "warning",
}
"""Headers without a hyphen, which no pattern tells from other words."""


def sections() -> dict[str, str]:
    """Text below each heading, down to the next one."""
    parts = re.split(r"^#+ (.*)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections()


def rows(section: str, number: int = 0) -> list[list[str]]:
    """The cells of a section's tables, without their heads; ``number`` picks one."""
    tables = re.findall(r"(?:^\|.*\n)+", SECTIONS[section], re.MULTILINE)
    lines = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names(cells: str | Iterable[str]) -> list[str]:
    """What stands in backticks."""
    text = cells if isinstance(cells, str) else " ".join(cells)
    return CODE.findall(text)


def field_names(model: type[BaseModel]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


def trees(folder: Path = SERVER) -> Iterator[ast.Module]:
    for path in sorted(folder.rglob("*.py")):
        yield ast.parse(path.read_text())


def function(path: str, name: str) -> ast.AST:
    """A function or class of a module of the server."""
    tree = ast.parse((SERVER / path).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next(node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name)


def texts(tree: ast.AST) -> set[str]:
    """All literals, those of bytes as text."""
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    plain = {value for value in found if isinstance(value, str)}
    return plain | {value.decode("latin-1") for value in found if isinstance(value, bytes)}


def keys_set(tree: ast.AST) -> set[str]:
    """Keys of dictionary displays, and of assignments to items."""
    keys: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys += node.keys
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(node.slice)
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_as_make_docs_writes_them() -> None:
    module = tables()
    assert {found[2] for found in module.MARKED.finditer(PAGE)} == set(module.TABLES)
    assert module.filled(PAGE) == PAGE


def test_routes() -> None:
    context = SimpleNamespace(
        config=ServerConfig(), observe=ObserveConfig(), served_model_names=("m",), engine=None
    )
    routes = create_app(cast(ServerContext, context)).routes
    real = {
        f"{method} {re.sub(r':path', '', route.path)}"
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert set(names(row[0] for row in rows("Routes"))) == real


@pytest.mark.parametrize("dialect", DIALECTS)
def test_fields_of_the_dialects(dialect: str) -> None:
    column = 1 + list(DIALECTS).index(dialect)
    told = {name: row[column] for row in rows("Fields") for name in names(row[0])}
    assert set(told.values()) <= {"●", "○", "✗", ""}
    known = {name for name, mark in told.items() if mark in ("●", "○")}
    refused = {name for name, mark in told.items() if mark == "✗"}
    assert field_names(DIALECTS[dialect]) - refused == known


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_marked_refused_is_refused(dialect: str) -> None:
    column = 1 + list(DIALECTS).index(dialect)
    for row in rows("Fields"):
        if row[column] == "✗":
            for name in names(row[0]):
                assert refusal(DIALECTS[dialect], MINIMAL[dialect], name) == name


def refusal(model: type[Any], body: dict[str, Any], name: str) -> str | None:
    """The field that an answer blames for a request that asks for ``name``."""
    for value in ("x", True, 5, [{"x": 1}], {"x": 1}):
        full = {**body, name: value}
        try:
            fields = model.model_validate(full)
        except ValueError:
            continue
        with pytest.raises(BraidError) as caught:
            fields.check(full)
        return str(cast(Any, caught.value).param)
    return None


def test_nested_fields() -> None:
    models: dict[str, type[BaseModel]] = {
        "stream_options": StreamOptions,
        "structured_outputs": StructuredOutputs,
        "reasoning": ReasoningFields,
        "text": TextFields,
        "thinking": Thinking,
        "output_config": OutputConfig,
    }
    told = {names(row[0])[0]: row[1] for row in rows("Fields", 1)}
    assert set(told) == set(models)
    for name, model in models.items():
        assert field_names(model) <= set(names(told[name])), name
        values = {"low", "max"} if name == "output_config" else set()
        assert set(names(told[name])) - values <= field_names(model), name


def test_fields_of_the_other_endpoints() -> None:
    models: dict[str, type[BaseModel]] = {
        "/v1/messages/count_tokens": CountRequest,
        "/v1/embeddings": EmbeddingRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
        "/v1/sessions/{id}/pin": PinRequest,
    }
    told = {names(row[0])[0]: set(names(row[1])) for row in rows("Fields", 2)}
    assert set(told) == set(models)
    words = {"float", "base64", "--max-ttl"}
    for name, model in models.items():
        assert told[name] - words == field_names(model), name


def test_refused_fields() -> None:
    told = {row[0]: names(row[1]) for row in rows("Fields", 3)}
    assert set(told) == {"all of C, T, R, M", "C", "M", "R", "`/tokenize`", "`/v1/embeddings`"}
    assert set(responses_schema._ELSEWHERE) < set(told["R"])
    common = told.pop("all of C, T, R, M")
    assert set(common) == set(schemas.UNSUPPORTED)
    for dialect, model in DIALECTS.items():
        for name in [*common, *told.pop(dialect, [])]:
            assert refusal(model, MINIMAL[dialect], name) == name, (dialect, name)
    for name in told["`/tokenize`"]:
        assert refusal(TokenizeRequest, MINIMAL["/tokenize"], name) == name
    assert set(told["`/tokenize`"]) == set(schemas.TEMPLATE_UNSUPPORTED)
    assert set(told["`/v1/embeddings`"]) == set(EMBEDDING_UNSUPPORTED)
    assert set(schemas.CHAT_UNSUPPORTED) == set(names(rows("Fields", 3)[1][1]))


def test_fields_that_the_warning_header_names() -> None:
    everywhere, messages_too = (set(names(row[1])) for row in rows("Fields", 4))
    assert everywhere == dialect_fields.CHANGES_OUTPUT
    assert messages_too == messages._CHANGES_OUTPUT


def test_every_identity_wish_format_and_metric_is_there() -> None:
    """The tables are generated; this is for a generator that leaves something out."""
    assert names(row[2] for row in rows("Programs")) == [row.label for row in ROWS]
    paths = {*(field.path for field in FIELDS), *CONTROLS}
    assert paths <= set(names(row[0] for row in rows("Retention")))
    known = names(row[0] for row in rows("Tools"))
    assert known == [*formats(), "none"]
    told = {names(row[0])[0]: (row[1], row[3].strip("`") or None) for row in rows("Metrics")}
    assert told == {row.name: (row.kind, row.alias) for row in metric_rows()}


def test_ways_to_ask_for_structured_output() -> None:
    told = names(row[0] for row in rows("Structured output"))
    assert field_names(StructuredFields) | {"text", "output_config", "output_format"} == set(told) - {
        "format"
    }


def test_outcomes() -> None:
    outcomes, reasons = rows("Retention", 1)[0]
    assert set(names(outcomes)) == set(Applied)
    assert set(names(reasons)) >= OUTCOME_REASONS


def test_every_option_of_serve() -> None:
    arguments = command["serve"].assemble_argument_collection()
    flags = {argument.names[0] for argument in arguments if argument.show} - {"--model"}
    assert {names(row[0])[0] for row in rows("Options of `braid serve`")} == flags


def error_codes() -> set[str]:
    """``code=`` of every call, the defaults of such parameters, and what the functions of that name return."""
    found: set[object] = set()
    for folder in (SERVER, ROOT / "braid" / "text", ROOT / "braid" / "engine"):
        for tree in trees(folder):
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.keyword)
                    and node.arg == "code"
                    and isinstance(node.value, ast.Constant)
                ):
                    found.add(node.value.value)
                elif isinstance(node, ast.FunctionDef):
                    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                    found |= {
                        default.value
                        for argument, default in pairs
                        if argument.arg == "code" and isinstance(default, ast.Constant)
                    }
                    if node.name == "_code":
                        found |= texts(node)
    return {code for code in found if isinstance(code, str)}


def http_errors() -> Iterator[ast.Call]:
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HttpError":
                yield node


def test_error_codes() -> None:
    told = set(names(row[3] for row in rows("Errors")))
    others = {"max_tokens", "--allowed-hosts", "/ready", "/health"}
    assert told - others == error_codes()


def test_error_statuses() -> None:
    given = {call.args[0].value for call in http_errors() if isinstance(call.args[0], ast.Constant)}
    refused = {404, 405, 408, 431, 503}  # by the router, and before there is a request
    assert {int(row[0]) for row in rows("Errors")} == given | refused


def test_error_types() -> None:
    tree = ast.parse((SERVER / "errors.py").read_text())
    types = {text for text in texts(tree) if text.endswith("_error") and " " not in text}
    for call in http_errors():
        given = next((word.value for word in call.keywords if word.arg == "type"), None)
        types |= texts(given) if given is not None else set()
    told = set(names(row[1] for row in rows("Errors"))) | set(names(row[2] for row in rows("Errors")))
    assert told == types - {"permission_error", "internal_error"}


def test_headers() -> None:
    told = set(names(row[0] for row in rows("Headers")))
    literals = {text for tree in trees() for text in texts(tree)}
    hyphened = {text for text in literals if re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", text)}
    assert hyphened - NO_HEADERS <= told
    assert literals & SHORT_HEADERS <= told
    identities = {row.header for row in ROWS}
    assert told <= literals | identities


def test_fields_of_logs_and_spans() -> None:
    told = {row[0].split(",")[0].split(" (")[0]: set(names(row[1])) for row in rows("Logs and traces")}
    assert told["access log"] == keys_set(function("observe/access.py", "_fields"))
    log = function("observe/request_log.py", "_line"), function("observe/request_log.py", "_who")
    assert told["request log"] == set.union(*map(keys_set, log))
    attribute = re.compile(r"(gen_ai|http|server|error)(\.[a-z_]+)+")
    spans = {text for text in texts(function("observe/spans.py", "Spans")) if attribute.fullmatch(text)}
    assert told["spans"] - {"--otel-legacy-names"} == spans
    assert told["events of spans"] == {
        text for text in texts(function("observe/spans.py", "_mark_times")) if text.startswith("braid.")
    }
    metrics = {f"gen_ai.server.{text}" for text in texts(function("observe/spans.py", "Spans"))}
    assert told["metrics over OTLP"] <= metrics


def test_sessions_are_told_whole() -> None:
    shown = keys_set(function("programs/sessions.py", "_shown")) - {"object"}
    assert shown <= set(names(SECTIONS["Programs"]))
    assert keys_set(function("programs/sessions.py", "_answer")) == {
        "id",
        "object",
        "verb",
        "outcome",
        "reason",
    }


def test_usage_is_told_whole() -> None:
    told = {part for row in rows("Usage") for name in names(row[1:]) for part in name.split(".")}
    for path in ("generate.py", "dialects/responses_events.py", "dialects/messages_events.py"):
        assert keys_set(function(path, "usage_payload")) - {"total_tokens"} <= told


def test_stream_events_are_told() -> None:
    told = set(names(cell for row in rows("Streams") for cell in row[1:]))
    event = re.compile(r"(message|content_block)_(start|stop|delta)")
    for path, name in (("messages_events.py", "BlockEvents"), ("messages.py", "MessageWriter")):
        events = {text for text in texts(function(f"dialects/{path}", name)) if event.fullmatch(text)}
        assert events
        assert events <= told


def test_ends_of_streams_are_told() -> None:
    told = set(names(cell for row in rows("Streams") for cell in row[1:]))
    assert {"data:", "data: [DONE]", ": ping", "event: ping", "event: error", 'data: {"error": ...}'} <= told
    writer = function("dialects/responses_events.py", "ResponseWriter")
    words = {"created", "in_progress", "completed", "incomplete", "failed"}
    assert words <= texts(writer)
    assert {f"response.{word}" for word in words} <= told
