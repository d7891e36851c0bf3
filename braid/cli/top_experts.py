"""Experts in ``braid top``: how many are in memory, how often that was enough, and what the others cost."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from braid.cli.top_data import History
from braid.cli.top_parts import Part, bar, legend, panel, row

EXPERT_LINES = {False: 3, True: 5}
"""Lines that it takes, by whether the terminal is tall."""
_OUTCOMES = {"hit": "green", "miss": "red", "bypass": "magenta"}
_CAUSES = {"demand": "red", "prefill": "magenta", "prefetch": "blue"}
_FATES = ("useful", "late", "wasted")


def experts(history: History, width: int, *, is_tall: bool) -> RenderableType | None:
    """One line, or two panels beside each other; None on a server whose experts are all in memory.

    Args:
        width: of the inside of one of two panels.
    """
    if not history.now.has("expert_slots"):
        return None
    waits, reads = _line(_waits(history)), _line(_reads(history))
    if not is_tall:
        return panel(_title(history), Text.assemble(waits, reads, no_wrap=True, overflow="ellipsis"))
    uses = _gained(history, "expert_uses_total", "outcome")
    read = _gained(history, "expert_read_bytes_total", "cause")
    outcomes = {name: Part(uses.get(name, 0.0), style) for name, style in _OUTCOMES.items()}
    causes = {name: Part(read.get(name, 0.0) / 1e6, style) for name, style in _CAUSES.items()}
    return row(
        panel(_title(history), Group(bar(tuple(outcomes.values()), width), legend(outcomes, 3), waits)),
        panel("experts read, MB", Group(bar(tuple(causes.values()), width), legend(causes, 3), reads)),
    )


def _title(history: History) -> str:
    now = history.now
    resident, slots, total = now.value("experts_resident"), now.value("expert_slots"), now.value("experts")
    share = f" = {slots / total:.0%}" if total else ""
    return f"experts {resident:,.0f} in {slots:,.0f} slots of {total:,.0f}{share}"


def _line(facts: list[tuple[str, str, str]]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, value, style in facts:
        text.append(f"{name} ", style="dim")
        text.append(f"{value}  ", style=style)
    return text


def _waits(history: History) -> list[tuple[str, str, str]]:
    busy = history.added("lane_busy_seconds_total")
    stalled = _share(history, "expert_stall_seconds_total", busy)
    return [("hits", _hits(history), "bold green"), ("stalled", stalled, "yellow")]


def _reads(history: History) -> list[tuple[str, str, str]]:
    rate = history.rate("expert_read_bytes_total") / 1e9
    link = _share(history, "expert_link_busy_seconds_total", history.span)
    facts = [("link", link, ""), ("reads", f"{rate:.2f} GB/s", "bold")]
    early = history.now.by("expert_prefetches_total", "fate")
    if any(early.values()):
        facts.append(("/".join(_FATES), "/".join(f"{early.get(fate, 0):,.0f}" for fate in _FATES), ""))
    return facts


def _gained(history: History, name: str, label: str) -> dict[str, float]:
    """By label, over the window; since the start where nothing was gained."""
    now, before = history.now.by(name, label), history.scrapes[0].by(name, label)
    gained = {key: value - before.get(key, 0.0) for key, value in now.items()}
    return gained if any(gained.values()) and min(gained.values()) >= 0 else now


def _hits(history: History) -> str:
    uses = _gained(history, "expert_uses_total", "outcome")
    whole = sum(uses.values())
    return f"{uses.get('hit', 0.0) / whole:.0%}" if whole else "–"


def _share(history: History, name: str, of: float) -> str:
    return f"{min(1.0, history.added(name) / of):.0%}" if of > 0 else "–"
