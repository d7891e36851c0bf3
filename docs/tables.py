"""The tables of ``docs/api.md`` that come from the code: ``make docs`` writes them between their markers.

What needs words is written by hand, and ``tests/test_api_docs.py`` checks it against the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from braid.cli.app import app
from braid.cli.options import ServerOptions
from braid.core import constraint, sampling
from braid.server import slo
from braid.server.config import ServerConfig
from braid.server.dialects import embeddings, messages_input, schemas, structured, tools
from braid.server.guard import keys
from braid.server.observe.metrics import metric_rows
from braid.server.programs import identity, intent, sessions
from braid.text.format_data import formats
from braid.text.messages import MAX_DEPTH

PAGE = Path(__file__).parent / "api.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
CONFIG_FLAGS = {"api_keys": "--api-key", "drain_timeout": "--shutdown-timeout"}
"""Fields of ``ServerConfig`` whose flags have other names."""

Row = Sequence[object]


def table(head: Row, rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def code(name: object) -> str:
    return f"`{name}`"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in names if name)


def flags() -> str:
    """Every option of ``braid serve``."""
    rows = []
    for argument in app["serve"].assemble_argument_collection():
        if not argument.show or argument.names[0] == "--model":
            continue
        name = argument.names[0]
        twin = "BRAID_" + name.removeprefix("--").replace("-", "_").upper()
        rows.append((code(name), code(twin), _default(argument), argument.parameter.help))
    return table(("flag", "environment", "default", "meaning"), rows)


def _default(argument: Any) -> str:
    shown, value = argument.parameter.show_default, argument.field_info.default
    if shown is not None:
        return str(shown)
    return "off" if value is False else code(f"{value:g}" if isinstance(value, float) else value)


def limits() -> str:
    """Every field of ``ServerConfig``, by its docstring."""
    assert ServerConfig.__doc__ is not None
    text = ServerConfig.__doc__.partition("Args:")[2].partition("Raises:")[0]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*?)(?=^ {8}\w|\Z)", text, re.MULTILINE | re.DOTALL)
    known = {field.name: field.default for field in fields(ServerConfig)}
    rows = []
    for names, meaning in entries:
        told = [name for name in names.split(", ") if name in known]
        if told:
            sizes = [_size(name, known.pop(name)) for name in told]
            words = " ".join(meaning.split()).replace("``", "`")
            rows.append((_codes(told), ", ".join(sizes), _codes(map(_flag, told)), words))
    assert not known, f"ServerConfig's docstring leaves out {', '.join(known)}"
    return table(("limit", "default", "flag", "meaning"), rows)


def _flag(name: str) -> str:
    """The option that sets a field of ``ServerConfig``; empty where none does."""
    options = {field.name for field in fields(ServerOptions)}
    return CONFIG_FLAGS.get(name) or ("--" + name.replace("_", "-") if name in options else "")


def _size(name: str, value: object) -> str:
    if value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and "bytes" in name:
        return f"{value >> 20} MiB" if value % (1 << 20) == 0 else f"{value / 1024:g} KiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def bounds() -> str:
    """Limits of single fields that no option changes."""
    rows: tuple[Row, ...] = (
        ("`n`", sampling.MAX_N),
        ("`logprobs` (completions), `top_logprobs`, `prompt_logprobs`", sampling.MAX_LOGPROBS),
        ("entries of `logit_bias`", sampling.MAX_LOGIT_BIAS),
        ("characters of one stop string", schemas.MAX_STOP_CHARS),
        ("entries of `stop_sequences`", sampling.MAX_STOP),
        ("entries of `stop_token_ids`", schemas.MAX_STOP_TOKEN_IDS),
        ("`priority`", schemas.MAX_PRIORITY),
        ("`slo_ttft_ms`, `slo_tbt_ms`", slo.MAX_SLO_MS),
        ("pairs of `metadata`", schemas.MAX_METADATA),
        ("characters of a `metadata` key, and of a value", f"{schemas.MAX_KEY}, {schemas.MAX_VALUE}"),
        ("characters of `safety_identifier`", schemas.MAX_SAFETY_IDENTIFIER),
        ("characters of `cache_salt`", schemas.MAX_CACHE_SALT),
        ("tools of one request", tools.MAX_TOOLS),
        ("nesting of messages, tools and schemas", MAX_DEPTH),
        ("bytes of a schema, regex or grammar", constraint.MAX_SOURCE_BYTES),
        ("characters of a GBNF grammar", structured.MAX_GBNF_CHARS),
        ("entries of `choice`", structured.MAX_CHOICES),
        ("inputs of an embeddings request", embeddings.MAX_INPUTS),
        ("blocks with `cache_control` in one Messages request", messages_input.MAX_MARKS),
        ("marked prefixes that count, in every dialect", intent.MAX_BOUNDARIES),
        ("bytes of a program's id", identity.MAX_ID_BYTES),
        ("sessions on one page", sessions.MAX_LIMIT),
        ("API keys", keys._MAX_KEYS),
    )
    return table(("field", "at most"), rows)


def identities() -> str:
    """The rows of ``identities.toml``, in the order in which they win."""
    rows = (
        (row.rank, "header" if row.header else "body", code(row.label), row.client, row.role)
        for row in identity.ROWS
    )
    return table(("rank", "where", "name", "client", "says"), rows)


_WISHES = {
    "min_s": "keep at least so long",
    "max_s": "keep at most so long",
    "mode": "`implicit` or `explicit`: only marked prefixes count",
    "lease_s": "hold the prompt's blocks for so long: a lease",
    "priority": "run earlier",
    "expected_out": "output tokens to expect",
    "deadline_s": "of no use after",
    "tool": "the tool that runs next",
    "return_s": "when the next turn comes, median",
    "return_p90_s": "when the next turn comes, 90th percentile",
    None: "known, of no use here",
}
_VALUES = {
    "ttl": "seconds, or a text such as `5m`",
    "_retention": "`in_memory` or a time",
    "milliseconds": "milliseconds",
    "count": "integer >= 0",
    "integer": "32-bit integer",
    "_earlier": "32-bit integer, higher is earlier",
    "text": "string",
    "_anything": "anything",
}


def wishes() -> str:
    """Every way of wishing something for the KV of a prompt."""
    rows = [
        (code(field.path), _VALUES[field.read.__name__], _WISHES[field.sets], _fate(field.sets))
        for field in intent.FIELDS
    ]
    control = "object `{type, ttl}`"
    rows += [(code(path), control, _WISHES["min_s"], _fate("min_s")) for path in intent.CONTROLS]
    rows += [
        (
            f"`{key}` on a block, message or tool",
            control,
            "the same, for the prefix that ends there",
            _fate("min_s"),
        )
        for key in intent._BLOCK_KEYS
    ]
    path = "agent_hint.context_management.edits"
    verbs = ", ".join(map(code, sorted(intent._VERBS)))
    rows.append((code(path), f"list of {verbs}", "what to do with the program's KV now", _fate("verbs")))
    return table(("field", "value", "wish", "today"), rows)


def _fate(sets: str | None) -> str:
    if sets == "mode":
        return "read"
    return "acted on when the turn ends" if sets in intent.ACTED_ON else "`ignored`, reason `unsupported`"


def metrics() -> str:
    """Every metric, and its name for dashboards made for vLLM."""
    rows = (
        (
            code(row.name),
            row.kind,
            ", ".join(map(code, row.labels)),
            code(row.alias) if row.alias else "",
            row.help,
        )
        for row in metric_rows()
    )
    return table(("metric", "type", "labels", "alias", "meaning"), rows)


def reply_formats() -> str:
    """Every name that ``--tool-call-parser`` takes."""
    rows = []
    for data in formats().values():
        calls = "yes" if "tool_calls" in data.template["fields"] else "no, thoughts only"
        held = "yes" if data.wire is not None else "no"
        rows.append((code(data.name), ", ".join(map(code, data.aliases)), calls, held))
    rows.append(("`none`", "", "no: every reply is content", "no"))
    return table(("name", "other names", "reads calls", "can be held to calls"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "bounds": bounds,
    "flags": flags,
    "formats": reply_formats,
    "identities": identities,
    "limits": limits,
    "metrics": metrics,
    "wishes": wishes,
}


def filled(page: str) -> str:
    """The page with every table as the code has it now."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
