"""Programs in ``braid top``: what each does, when it is expected back, where its KV lives, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from braid.cli.top_data import History, Scrape, buckets
from braid.cli.top_parts import Part, bar, clock, legend, panel, row, seconds, short

RETENTION_LINES = 6
_WIDE = 110
"""Columns from which on all of them have room."""
_STATES = {"running": "bold green", "waiting": "yellow", "children": "cyan", "tool": "blue", "idle": "dim"}
_PLACES = (("device", "cyan", "█"), ("lower", "blue", "▓"), ("gone", "grey37", "░"))
_ORIGINS = {
    "device hit": ("green", ("device_hit",)),
    "reload": ("blue", ("host_reload", "disk_reload")),
    "recompute": ("red", ("recompute",)),
    "compulsory": ("grey50", ("compulsory",)),
}
_OUTCOMES = {
    "handed over": "green",
    "lost": "red",
    "expired": "yellow",
    "pressure": "magenta",
    "superseded": "cyan",
    "final": "grey50",
}
_COUNTED = ("handed over", "lost", "expired", "pressure")
"""Outcomes of programs that were to come back."""

Session = dict[str, Any]


def programs(history: History, rows: int, width: int) -> Panel:
    """At most ``rows`` lines of programs, those with a turn under way first, then the latest."""
    sessions = history.sessions
    foot = _foot(history.now)
    if sessions is None:
        return panel("programs", Text("this server lists none", style="dim"), foot)
    if not sessions:
        return panel(
            "programs", Text("none yet: clients that name their session show here", style="dim"), foot
        )
    latest = sorted(sessions, key=lambda session: (not _is_active(session), _number(session, "idle_seconds")))
    table = _table(width)
    for session in latest[:rows]:
        table.add_row(*_cells(session, width))
    more = f", {len(latest) - rows:,} more" if len(latest) > rows else ""
    return panel(f"programs {len(latest):,}{more}", table, foot)


def retention(scrape: Scrape, width: int) -> Table | None:
    """Two panels: where the turns' tokens came from, and what became of what was kept; None on a server that does not
    count it."""
    if not scrape.has("prompt_tokens_by_origin_total"):
        return None
    return row(_origins(scrape, width), _outcomes(scrape, width))


def _table(width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=True, header_style="dim")
    table.add_column("program", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("state", no_wrap=True)
    for name in ("idle", "back in", "turns", "tokens", *(("cached", "lease") if width >= _WIDE else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(_key_to_places(width), no_wrap=True, width=_bar_width(width))
    table.add_column("ended by", no_wrap=True, overflow="ellipsis", max_width=24 if width >= _WIDE else 10)
    return table


def _key_to_places(width: int) -> Text:
    if width < _WIDE:
        return Text("KV")
    return Text.assemble("KV", *((f"  {glyph} {name}", style) for name, style, glyph in _PLACES))


def _bar_width(width: int) -> int:
    return 32 if width >= _WIDE else 10


def _cells(session: Session, width: int) -> Iterator[RenderableType]:
    state = _state(session)
    yield Text(_printable(session.get("id", "?")), style="bold green" if _is_active(session) else "")
    yield Text(state, style=_STATES.get(state, ""))
    yield Text("–", style="dim") if _is_active(session) else Text(clock(_number(session, "idle_seconds")))
    yield _expected(session)
    yield f"{_number(session, 'turns'):,.0f}"
    yield short(_number(session, "prompt_tokens") + _number(session, "output_tokens"))
    if width >= _WIDE:
        lease = _number(session, "lease_seconds")
        yield f"{_number(session, 'cached_share'):.0%}"
        yield Text(clock(lease), style="magenta") if lease else Text("–", style="dim")
    yield _where(session, _bar_width(width))
    yield _ended(session)


def _state(session: Session) -> str:
    """As the server says; one that does not say it tells active from idle ones."""
    said = session.get("state")
    if isinstance(said, str) and said in _STATES:
        return said
    return "running" if _is_active(session) else "idle"


def _is_active(session: Session) -> bool:
    return _number(session, "active_turns") > 0


def _expected(session: Session) -> Text:
    value = session.get("expected_return_seconds")
    if _is_active(session) or not isinstance(value, int | float):
        return Text("–", style="dim")
    return Text(clock(value)) if value >= 1 else Text("now", style="green")


def _where(session: Session, width: int) -> Text:
    """The blocks of the latest turn, by where they are."""
    kv = session.get("kv")
    if not isinstance(kv, dict) or not _number(kv, "blocks"):
        return Text("–", style="dim")
    device, lower = _number(kv, "device_blocks"), _number(kv, "lower_blocks")
    counts = (device, lower, max(0.0, _number(kv, "blocks") - device - lower))
    pairs = zip(counts, _PLACES, strict=True)
    return bar([Part(count, style, glyph) for count, (_, style, glyph) in pairs], width)


def _ended(session: Session) -> Text:
    """How the latest turn ended, and what it called."""
    finish, tool = session.get("finish"), session.get("tool")
    if not isinstance(finish, str) or finish == "unknown":
        return Text("–", style="dim")
    if finish == "tool" and isinstance(tool, str) and tool:
        return Text(_printable(tool), style="blue")
    return Text(_printable(finish))


def _foot(scrape: Scrape) -> Text | None:
    """Shares and waits in one line."""
    if not scrape.has("prompt_tokens_by_origin_total"):
        return None
    wait = scrape.value("oldest_newcomer_wait_seconds")
    outcomes = scrape.by("programs_kept_total", "outcome")
    returned = sum(outcomes.get(name, 0.0) for name in _COUNTED)
    text = Text.assemble((" newcomers wait ", "dim"), (clock(wait), "yellow" if wait >= 1 else ""))
    if returned:
        text.append("  KV there on return ", style="dim")
        text.append(f"{outcomes.get('handed over', 0.0) / returned:.0%}")
    text.append("  recompute ÷ compulsory ", style="dim")
    text.append(_ratio(scrape))
    return text.append(" ")


def _ratio(scrape: Scrape) -> str:
    origins = scrape.by("prompt_tokens_by_origin_total", "source")
    compulsory = origins.get("compulsory", 0.0)
    return f"{origins.get('recompute', 0.0) / compulsory:.2f}" if compulsory else "–"


def _origins(scrape: Scrape, width: int) -> Panel:
    counts = scrape.by("prompt_tokens_by_origin_total", "source")
    parts = {
        name: Part(sum(counts.get(origin, 0.0) for origin in origins), style)
        for name, (style, origins) in _ORIGINS.items()
    }
    ratio = Text.assemble(("recompute ÷ compulsory ", "dim"), _ratio(scrape))
    body = Group(bar(tuple(parts.values()), width), legend(parts, 2), ratio)
    return panel("where prompts' KV came from, tokens", body)


def _outcomes(scrape: Scrape, width: int) -> Panel:
    counts = scrape.by("programs_kept_total", "outcome")
    parts = {name: Part(counts.get(name, 0.0), style) for name, style in _OUTCOMES.items()}
    first, later = (buckets(scrape, f"{name}_turn_ttft_seconds").quantile(0.5) for name in ("first", "later"))
    waits = Text.assemble(
        ("TTFT p50 of first turns ", "dim"), seconds(first), ("  of later ", "dim"), seconds(later)
    )
    body = Group(bar(tuple(parts.values()), width), legend(parts, 3), waits)
    return panel("what became of kept programs", body)


def _printable(text: object) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(text))


def _number(values: Session, name: str) -> float:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
