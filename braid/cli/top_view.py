"""How ``braid top`` looks: one frame of panels, from 80 by 24 characters upwards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from braid.cli.top_data import History, Scrape, buckets

_SPARKS = "▁▂▃▄▅▆▇█"
_PARTS = (("used", "cyan"), ("leased", "magenta"), ("cached", "blue"), ("free", "grey37"))
_PHASES = (("waiting", "yellow"), ("prefill", "magenta"), ("decode", "green"))
_LATENCIES = (
    ("TTFT", "time_to_first_token_seconds"),
    ("TBT", "inter_token_latency_seconds"),
    ("E2E", "request_seconds"),
    ("queue", "queue_seconds"),
)
_QUANTILES = (0.5, 0.9, 0.99)
_FEWEST_PROGRAMS = 3
_FIXED_LINES = 18
"""Lines that everything but the rows of the programs takes."""


def frame(history: History, url: str, console: Console, problem: str | None = None) -> RenderableType:
    """One frame, as wide as the console; ``problem`` stands in its head, and the numbers are the last known."""
    if not history.scrapes:
        return Group(_head(None, url, problem), Text(), Text(f"  {problem or 'asking ...'}", style="yellow"))
    upper = _row(_requests(history), _blocks(history, _inner(console)))
    lower = _row(_tokens(history, _inner(console)), _latency(history))
    rows = max(_FEWEST_PROGRAMS, console.height - _FIXED_LINES - (problem is not None))
    warning = (
        [] if problem is None else [Text(f" {problem}", style="yellow", no_wrap=True, overflow="ellipsis")]
    )
    return Group(_head(history.now, url, problem), *warning, upper, lower, _programs(history.sessions, rows))


def _inner(console: Console) -> int:
    """Columns inside one of two panels side by side."""
    return console.width // 2 - 4


def _row(*panels: RenderableType) -> Table:
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def _panel(title: str, body: RenderableType) -> Panel:
    return Panel(
        body, title=Text(title, style="bold"), title_align="left", box=box.ROUNDED, border_style="grey42"
    )


def _head(scrape: Scrape | None, url: str, problem: str | None) -> Table:
    left = Text.assemble((" braid ", "bold black on cyan"), " ")
    right = Text()
    if scrape is not None:
        left.append(scrape.label("model_name"), style="bold")
        restarts = int(scrape.value("engine_restarts_total"))
        if scrape.has("start_time_seconds"):
            right.append(f"up {_clock(time.time() - scrape.value('start_time_seconds'))}  ", style="dim")
        right.append(f"restarts {restarts}  ", style="yellow" if restarts else "dim")
    left.append(f"  {url}", style="dim")
    right.append_text(_state(scrape, problem))
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid


def _state(scrape: Scrape | None, problem: str | None) -> Text:
    if problem is not None:
        return Text("● unreachable ", style="bold red")
    if scrape is not None and scrape.value("engine_up") == 1:
        return Text("● ready ", style="bold green")
    return Text("● engine down ", style="bold yellow")


def _requests(history: History) -> Panel:
    now = history.now
    phases = now.by("requests_by_phase", "phase")
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8)
    table.add_column(width=4, justify="right")
    table.add_column(no_wrap=True, overflow="crop")
    for name, style in _PHASES:
        count = int(phases.get(name, 0))
        table.add_row(name, Text(str(count), style=f"bold {style}"), Text("■" * count, style=style))
    finished = now.by("requests_finished_total", "finished_reason")
    done = int(finished.get("stop", 0) + finished.get("length", 0))
    lines = [
        _pairs(("done", done, ""), ("aborted", int(finished.get("abort", 0)), "yellow")),
        _pairs(
            ("failed", int(finished.get("error", 0)), "red"),
            ("rejected", _rejected(now), "yellow"),
            ("preempted", int(now.value("preemptions_total")), "yellow"),
        ),
    ]
    return _panel("requests", Group(table, *lines))


def _rejected(scrape: Scrape) -> int:
    return int(scrape.value("admission_rejections_total"))


def _pairs(*pairs: tuple[str, int, str]) -> Text:
    """Names with numbers; a style is for numbers that are not zero."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, value, style in pairs:
        text.append(f"{name} ", style="dim")
        text.append(f"{value:,}  ", style=style if value else "")
    return text


def _blocks(history: History, width: int) -> Panel:
    now = history.now
    total, free = now.value("kv_blocks"), now.value("kv_blocks_free")
    leased = min(now.value("kv_blocks_leased"), total)
    cached = min(now.value("kv_blocks_cached"), free)
    counts = {
        "used": max(0.0, total - free - leased),
        "leased": leased,
        "cached": cached,
        "free": free - cached,
    }
    legend = _legend(counts)
    asked, hits = history.added("prefix_cache_queries_total"), history.added("prefix_cache_hits_total")
    label = "prefix hits"
    if not asked:
        asked, hits = now.value("prefix_cache_queries_total"), now.value("prefix_cache_hits_total")
        label = "prefix hits since start"
    share = f"{hits / asked:.0%}" if asked else "–"
    rate = Text.assemble((f"{label} ", "dim"), (share, "bold green" if hits else ""))
    bar = _bar([(counts[name], style) for name, style in _PARTS], width)
    return _panel(f"KV blocks {total:,.0f}", Group(bar, legend, Text(), rate))


def _legend(counts: dict[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    styles = dict(_PARTS)
    cells = [
        Text.assemble(("■ ", styles[name]), (f"{name} ", "dim"), f"{count:,.0f}")
        for name, count in counts.items()
    ]
    table.add_row(*cells[:2])
    table.add_row(*cells[2:])
    return table


def _bar(parts: Sequence[tuple[float, str]], width: int) -> Text:
    """A bar of ``width`` characters, divided like the values; whatever is not zero is seen."""
    whole = sum(value for value, _ in parts)
    text = Text(no_wrap=True, overflow="crop")
    if not whole:
        return Text("─" * width, style="grey37")
    done, drawn = 0.0, 0
    for value, style in parts:
        done += value
        end = round(done / whole * width)
        if value and end == drawn < width:
            end += 1
        text.append("█" * (end - drawn), style=style)
        drawn = max(drawn, end)
    return text


def _tokens(history: History, width: int) -> Panel:
    room = max(4, width - 24)
    table = Table.grid(padding=(0, 1))
    table.add_column(width=7)
    table.add_column(width=14, justify="right")
    table.add_column(no_wrap=True, overflow="crop")
    for name, counter, rates, style in (
        ("prompt", "prompt_tokens_total", history.rates_in, "magenta"),
        ("output", "generation_tokens_total", history.rates_out, "green"),
    ):
        rate = Text.assemble((f"{history.rate(counter):,.0f}", f"bold {style}"), (" tok/s", "dim"))
        table.add_row(name, rate, Text(_spark(list(rates)[-room:]), style=style))
    answered = history.rate("requests_finished_total")
    table.add_row("done", Text.assemble((f"{answered:,.1f}", "bold"), (" req/s", "dim")), "")
    now = history.now
    sums = _pairs(
        ("total in", int(now.value("prompt_tokens_total")), ""),
        ("out", int(now.value("generation_tokens_total")), ""),
    )
    return _panel(f"tokens, last {history.span:.0f} s", Group(table, Text(), sums))


def _spark(values: Sequence[float]) -> str:
    top = max(values, default=0.0)
    if top <= 0:
        return "▁" * len(values)
    return "".join(_SPARKS[min(7, int(value / top * 7.999))] for value in values)


def _latency(history: History) -> Panel:
    recent = (
        history.window("time_to_first_token_seconds").num + history.window("inter_token_latency_seconds").num
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=True, header_style="dim")
    table.add_column("")
    for quantile in _QUANTILES:
        table.add_column(f"p{quantile * 100:.0f}", justify="right")
    for label, name in _LATENCIES:
        values = history.window(name) if recent else buckets(history.now, name)
        table.add_row(label, *(_seconds(values.quantile(quantile)) for quantile in _QUANTILES))
    return _panel(f"latency, last {history.span:.0f} s" if recent else "latency since start", table)


def _seconds(value: float | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    if value < 1:
        return Text.assemble(f"{value * 1000:.{1 if value < 0.01 else 0}f}", (" ms", "dim"))
    return Text.assemble(f"{value:.{2 if value < 10 else 1}f}", (" s ", "dim"))


def _programs(sessions: list[dict[str, Any]] | None, rows: int) -> Panel:
    if sessions is None:
        return _panel("programs", Text("this server lists none", style="dim"))
    if not sessions:
        return _panel("programs", Text("none yet: clients that name their session show here", style="dim"))
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=True, header_style="dim")
    table.add_column("program", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("turns", "prompt", "output", "cached", "lease", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    latest = sorted(sessions, key=lambda session: _number(session, "idle_seconds"))
    shown = latest if len(latest) <= rows else latest[: rows - 1]
    for session in shown:
        table.add_row(*_program_cells(session))
    if len(shown) < len(latest):
        table.add_row(Text(f"and {len(latest) - len(shown):,} more", style="dim"))
    return _panel(f"programs {len(sessions):,}", table)


def _program_cells(session: dict[str, Any]) -> Iterable[RenderableType]:
    active = _number(session, "active_turns") > 0
    name = "".join(char if char.isprintable() else "?" for char in str(session.get("id", "?")))
    yield Text(name, style="bold green" if active else "")
    for field in ("turns", "prompt_tokens", "output_tokens"):
        yield f"{_number(session, field):,.0f}"
    yield f"{_number(session, 'cached_share'):.0%}"
    lease = _number(session, "lease_seconds")
    yield Text(_clock(lease), style="magenta") if lease else Text("–", style="dim")
    yield (
        Text("active", style="green")
        if active
        else Text(_clock(_number(session, "idle_seconds")), style="dim")
    )


def _number(session: dict[str, Any], name: str) -> float:
    value = session.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _clock(seconds: float) -> str:
    """Such as 7s, 3:07, 2:03:07 or 5d 3h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 172_800:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 86_400}d {whole // 3600 % 24}h"
