"""What frames of ``braid top`` are made of: panels, bars, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_SPARKS = "▁▂▃▄▅▆▇█"


def row(*panels: RenderableType) -> Table:
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def panel(title: str, body: RenderableType, foot: Text | None = None) -> Panel:
    """``foot`` stands in the lower border."""
    return Panel(
        body,
        title=Text(title, style="bold"),
        title_align="left",
        subtitle=foot,
        subtitle_align="left",
        box=box.ROUNDED,
        border_style="grey42",
    )


def pairs(*pairs: tuple[str, int, str]) -> Text:
    """Names with numbers; a style is for numbers that are not zero."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, value, style in pairs:
        text.append(f"{name} ", style="dim")
        text.append(f"{value:,}  ", style=style if value else "")
    return text


class Part(NamedTuple):
    """Of a bar."""

    value: float
    style: str
    glyph: str = "█"


def bar(parts: Sequence[Part], width: int) -> Text:
    """A bar of ``width`` characters, divided like the values; whatever is not zero is seen."""
    whole = sum(part.value for part in parts)
    text = Text(no_wrap=True, overflow="crop")
    if not whole:
        return Text("─" * width, style="grey37")
    done, drawn = 0.0, 0
    for value, style, glyph in parts:
        done += value
        end = round(done / whole * width)
        if value and end == drawn < width:
            end += 1
        text.append(glyph * (end - drawn), style=style)
        drawn = max(drawn, end)
    return text


def legend(parts: Mapping[str, Part], columns: int) -> Table:
    """What the parts of a bar are, and how large."""
    table = Table.grid(padding=(0, 2))
    cells = [
        Text.assemble((f"{glyph} ", style), (f"{name} ", "dim"), f"{value:,.0f}")
        for name, (value, style, glyph) in parts.items()
    ]
    for first in range(0, len(cells), columns):
        table.add_row(*cells[first : first + columns])
    return table


def spark(values: Sequence[float]) -> str:
    top = max(values, default=0.0)
    if top <= 0:
        return "▁" * len(values)
    return "".join(_SPARKS[min(7, int(value / top * 7.999))] for value in values)


def seconds(value: float | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    if value < 1:
        return Text.assemble(f"{value * 1000:.{1 if value < 0.01 else 0}f}", (" ms", "dim"))
    return Text.assemble(f"{value:.{2 if value < 10 else 1}f}", (" s ", "dim"))


def short(count: float) -> str:
    """Such as 950, 12.3k or 4.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return f"{count:.0f}"


def clock(seconds: float) -> str:
    """Such as 7s, 3:07, 2:03:07 or 5d 3h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 172_800:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 86_400}d {whole // 3600 % 24}h"
