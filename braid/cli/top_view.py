"""How ``braid top`` looks: one frame of panels, from 80 by 24 characters upwards."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from braid.cli.top_data import History, Scrape, buckets
from braid.cli.top_experts import EXPERT_LINES, experts
from braid.cli.top_parts import Part, bar, clock, legend, pairs, panel, row, seconds, spark
from braid.cli.top_phases import decision
from braid.cli.top_programs import RETENTION_LINES, programs, retention

_PHASES = (("waiting", "yellow"), ("prefill", "magenta"), ("decode", "green"))
_LATENCIES = (
    ("TTFT", "time_to_first_token_seconds"),
    ("TBT", "inter_token_latency_seconds"),
    ("E2E", "request_seconds"),
    ("queue", "queue_seconds"),
)
LANES = ("mixed", "prefill", "decode")
_QUANTILES = (0.5, 0.9, 0.99)
_FEWEST_PROGRAMS = 3
_FIXED_LINES = 18
"""Lines that everything but the rows of the programs takes."""
_TALL = 32
"""Lines from which on there is room for what became of programs' KV."""


def frame(history: History, url: str, console: Console, problem: str | None = None) -> RenderableType:
    """One frame, as wide as the console; ``problem`` stands in its head, and the numbers are the last known."""
    if not history.scrapes:
        return Group(_head(None, url, problem), Text(), Text(f"  {problem or 'asking ...'}", style="yellow"))
    upper = row(_requests(history), _blocks(history, _inner(console)))
    lower = row(_tokens(history, _inner(console)), _latency(history))
    is_tall = console.height >= _TALL
    stored = experts(history, _inner(console), is_tall=is_tall)
    more = retention(history.now, _inner(console)) if is_tall else None
    rows = console.height - _FIXED_LINES - (problem is not None) - (RETENTION_LINES if more else 0)
    rows -= EXPERT_LINES[is_tall] if stored else 0
    warning = (
        [] if problem is None else [Text(f" {problem}", style="yellow", no_wrap=True, overflow="ellipsis")]
    )
    known = programs(history, max(_FEWEST_PROGRAMS, rows), console.width)
    optional = [part for part in (stored, more) if part is not None]
    return Group(_head(history.now, url, problem), *warning, upper, lower, *optional, known)


def _inner(console: Console) -> int:
    """Columns inside one of two panels side by side."""
    return console.width // 2 - 4


def _head(scrape: Scrape | None, url: str, problem: str | None) -> Table:
    left = Text.assemble((" braid ", "bold black on cyan"), " ")
    right = Text()
    if scrape is not None:
        left.append(scrape.label("model_name"), style="bold")
        restarts = int(scrape.value("engine_restarts_total"))
        if scrape.has("start_time_seconds"):
            right.append(f"up {clock(time.time() - scrape.value('start_time_seconds'))}  ", style="dim")
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
        pairs(("done", done, ""), ("aborted", int(finished.get("abort", 0)), "yellow")),
        pairs(
            ("failed", int(finished.get("error", 0)), "red"),
            ("rejected", _rejected(now), "yellow"),
            ("preempted", int(now.value("preemptions_total")), "yellow"),
        ),
    ]
    return panel("requests", Group(table, *lines))


def _rejected(scrape: Scrape) -> int:
    return int(scrape.value("admission_rejections_total"))


def _blocks(history: History, width: int) -> Panel:
    now = history.now
    total, free = now.value("kv_blocks"), now.value("kv_blocks_free")  # what only leases hold is free, too
    leased = min(now.value("kv_blocks_leased"), free)
    cached = max(0.0, min(now.value("kv_blocks_cached"), free) - leased)
    parts = {
        "used": Part(max(0.0, total - free), "cyan"),
        "leased": Part(leased, "magenta"),
        "cached": Part(cached, "blue"),
        "free": Part(free - leased - cached, "grey37"),
    }
    asked, hits = history.added("prefix_cache_queries_total"), history.added("prefix_cache_hits_total")
    label = "prefix hits"
    if not asked:
        asked, hits = now.value("prefix_cache_queries_total"), now.value("prefix_cache_hits_total")
        label = "prefix hits since start"
    share = f"{hits / asked:.0%}" if asked else "–"
    rate = Text.assemble((f"{label} ", "dim"), (share, "bold green" if hits else ""))
    body = Group(bar(tuple(parts.values()), width), legend(parts, 2), Text(), rate)
    return panel(f"KV blocks {total:,.0f}", body)


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
        table.add_row(name, rate, Text(spark(list(rates)[-room:]), style=style))
    answered = history.rate("requests_finished_total")
    table.add_row("done", Text.assemble((f"{answered:,.1f}", "bold"), (" req/s", "dim")), "")
    now = history.now
    sums = pairs(
        ("total in", int(now.value("prompt_tokens_total")), ""),
        ("out", int(now.value("generation_tokens_total")), ""),
    )
    return panel(f"tokens, last {history.span:.0f} s", Group(table, _lanes(history), sums), decision(now))


def _lanes(history: History) -> Text:
    """The lanes that worked: their share of the machine, and of the time in which they computed."""
    now, before = history.now, history.scrapes[0]
    units, division = now.by("lane_units", "lane"), now.by("division_units", "lane")
    busy, earlier = now.by("lane_busy_seconds_total", "lane"), before.by("lane_busy_seconds_total", "lane")
    text = Text(no_wrap=True, overflow="ellipsis")
    for lane in (name for name in LANES if name in busy):
        gained = busy[lane] - earlier.get(lane, 0.0)
        if gained <= 0 or history.span <= 0:
            continue
        share = min(1.0, gained / history.span)
        size = int(units.get(lane) or division.get(lane, 0))
        text.append(f"{lane} ", style="dim")
        text.append(f"×{size} ", style="bold")
        text.append(f"{share:.0%}  ")
    return text


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
        table.add_row(label, *(seconds(values.quantile(quantile)) for quantile in _QUANTILES))
    return panel(f"latency, last {history.span:.0f} s" if recent else "latency since start", table)
