"""Who a request says it is: one answer from many spellings, which are data (``identities.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from braid.core.program import Applied, Outcome, ProgramRef
from braid.server.programs.fields import dig, flag, wrong

MAX_ID_BYTES = 256
ROLES = frozenset(("program", "session", "group", "parent", "final", "cache_key"))
_GENERIC_RANK = 2
"""Up to here rows belong to no one client: the body may name the parent of a program that a header names."""

Headers = Iterable[tuple[bytes, bytes]]


class Row(NamedTuple):
    """One spelling: a header (lower case) or a dotted path in the body."""

    rank: int
    client: str
    role: str
    header: str | None
    body: str | None

    key: str | bytes
    """What must be there for the row to say anything: the header, or the first part of the path."""

    @property
    def label(self) -> str:
        return self.header or self.body or ""


def load_rows() -> tuple[Row, ...]:
    """The rows of the data file, in the order in which they win."""
    source = resources.files(__package__).joinpath("identities.toml").read_text()
    rows = tuple(map(_row, tomllib.loads(source)["rows"]))
    for row in rows:
        if row.role not in ROLES or (row.header is None) == (row.body is None):
            raise ValueError(f"identities.toml: a row needs one place and one of {sorted(ROLES)}, got {row}")
    return tuple(sorted(rows, key=lambda row: row.rank))


def _row(entry: Mapping[str, Any]) -> Row:
    header, body = str(entry.get("header", "")).lower(), str(entry.get("body", ""))
    key = header.encode() or body.partition(".")[0]
    return Row(entry["rank"], entry["client"], entry["role"], header or None, body or None, key)


ROWS = load_rows()


class Identity(NamedTuple):
    """What a request says of its program; ``program`` is None where it names none."""

    owner: str
    program: ProgramRef | None = None
    group: str | None = None
    final: bool = False
    cache_key: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    """What was said but could not be used."""


class Found(NamedTuple):
    row: Row
    value: str


def resolve(headers: Headers, body: Mapping[str, Any], owner: str) -> Identity:
    """The identity that headers and body give, by the precedence of the table.

    Ids are untrusted: one that is too long or not printable is passed over.

    Raises:
        InvalidParameterError: a known field of the body has a wrong type.
    """
    sent = {name.lower(): value for name, value in reversed(list(headers))}
    found: list[Found] = []
    outcomes: list[Outcome] = []
    final = False
    for row in ROWS:
        if row.key not in (body if row.header is None else sent):
            continue
        value = _value(row, sent, body)
        if value is None:
            continue
        if row.role == "final":
            final = final or _final(row, value)
        elif _is_id(text := _text(row, value)):
            found.append(Found(row, text))
        elif text:
            outcomes.append(Outcome(row.label, Applied.IGNORED, "invalid"))
    return _combine(found, owner, final, tuple(outcomes))


def _value(row: Row, sent: Mapping[bytes, bytes], body: Mapping[str, Any]) -> Any:
    if row.header is None:
        return dig(body, row.label)
    raw = sent.get(row.header.encode())
    return None if raw is None else raw.decode("utf-8", "replace").strip()


def _final(row: Row, value: object) -> bool:
    """A header may say anything; only a body's type is an error."""
    if row.header is not None:
        return isinstance(value, str) and value.lower() in ("true", "1")
    return flag(value, row.label)


def _text(row: Row, value: object) -> str:
    """Ids of the body may be numbers: those of jobs often are."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    if not isinstance(value, str):
        raise wrong(row.label, "a string", value)
    return value


def _is_id(text: str) -> bool:
    return (
        0 < len(text) <= MAX_ID_BYTES
        and text.isprintable()
        and "\ufffd" not in text
        and len(text.encode(errors="replace")) <= MAX_ID_BYTES
    )


def _combine(found: Sequence[Found], owner: str, final: bool, outcomes: tuple[Outcome, ...]) -> Identity:
    group = _first(found, "group")
    cache_key = _first(found, "cache_key")
    naming = [entry for entry in found if entry.row.role in ("program", "session")]
    if not naming:
        return Identity(owner, None, group, final, cache_key, outcomes)
    client = naming[0].row.client
    own = [entry for entry in naming if entry.row.client == client]
    finest = next((entry for entry in own if entry.row.role == "program"), own[0])
    coarser = next((entry.value for entry in own if entry.row.role == "session" and entry != finest), None)
    near = [entry for entry in found if entry.row.client == client or entry.row.rank <= _GENERIC_RANK]
    parent = _first(near, "parent")
    program = ProgramRef(
        owner=owner,
        program=finest.value,
        parent=None if parent == finest.value else parent,
        group=coarser or group,
        final=final,
        source=finest.row.label,
    )
    return Identity(owner, program, program.group, final, cache_key, outcomes)


def _first(found: Iterable[Found], role: str) -> str | None:
    return next((entry.value for entry in found if entry.row.role == role), None)
