"""A description's numbers as rows of words, for the page and for the terminal."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from braid.lab.arrays import QUANTILES
from braid.lab.describe.description import Description
from braid.lab.describe.lengths import LengthLaw
from braid.lab.describe.published import Compared

SHOWN = (0.05, 0.5, 0.95, 0.99)


class Rows(NamedTuple):
    """A table: the first column holds names, the others numbers."""

    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]


def number(value: float | None, digits: int = 4) -> str:
    """Whole numbers with commas, others with ``digits`` significant digits; ``-`` for none."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def summary_rows(description: Description) -> list[tuple[str, str]]:
    """The few numbers to see first: pairs (name, value)."""
    rows = [("requests", f"{description.rows:,}")]
    if description.programs:
        rows.append(("programs", f"{description.programs:,}"))
    if description.burstiness:
        span = description.span_s
        units = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))
        size, unit = next((pair for pair in units if span >= 0.9 * pair[0]), (1.0, "s"))
        rows += [
            ("span", f"{span / size:.2f} {unit}"),
            ("requests / s", number(description.burstiness.rate, 3)),
            ("gap CV, whole", number(description.burstiness.gap_cv, 3)),
            ("gap CV, per 20 min", number(description.burstiness.gap_cv_window, 3)),
        ]
    if description.failures.share is not None:
        rows.append(("failed", f"{description.failures.share:.2%}"))
    if description.sharing:
        reuse = description.sharing.reuse
        rate = reuse[0].block_hit_rate if reuse else description.sharing.cached_share
        rows.append(("blocks seen before" if reuse else "prompt tokens seen before", percent(rate)))
    return rows


def length_rows(description: Description) -> Rows | None:
    """Lengths of the whole trace and of each panel."""
    laws = [
        (what if part is description.whole else f"{part.panel.name}: {what}", law)
        for part in (description.whole, *description.panels)
        for what, law in (("prompt", part.input), ("output", part.output))
        if law
    ]
    if not laws:
        return None
    columns = (
        "tokens",
        "rows",
        "mean",
        *(f"p{q * 100:g}" for q in SHOWN),
        "max",
        "Zipf s",
        "KS 1",
        "KS 2",
    )
    return Rows(columns, [(name, *_law(law)) for name, law in laws])


def _law(law: LengthLaw) -> tuple[str, ...]:
    at = [number(law.quantiles[QUANTILES.index(q)], 3) for q in SHOWN]
    fits = (f"{law.zeta.exponent:.2f}", f"{law.single_distance.ks:.2f}", f"{law.double_distance.ks:.2f}")
    return (f"{law.num:,}", number(law.mean, 3), *at, f"{law.max:,}", *fits)


def arrival_rows(description: Description) -> Rows | None:
    """Index of dispersion by window, and the calendar's share."""
    found = description.burstiness
    if found is None:
        return None
    cells: list[tuple[str, ...]] = [
        (
            f"index of dispersion, {point.window_s:g} s",
            number(point.idc, 3),
            "" if point.judged else "says little: below the clock's grid or over span / 20",
        )
        for point in found.dispersion
    ]
    cells += [
        (
            "busiest 60 s",
            f"{number(found.peak_rate_60s, 3)} / s",
            f"{found.peak_rate_60s / found.rate:.1f} times the mean",
        ),
        (
            "silences",
            f"{found.idle_gaps:,}",
            f"gaps over ten mean gaps; {percent(found.idle_share)} of the time",
        ),
        ("gaps of exactly 0", percent(found.gap_zero_share), ""),
    ]
    for part in (description.whole, *description.panels):
        if part.calendar:
            text = f"hour of the week {percent(part.calendar.weekly_share)}"
            cells.append(
                (f"variance by hour of the day, {part.panel.name}", percent(part.calendar.daily_share), text)
            )
    return Rows(("arrivals", "value", "note"), cells)


def quartile_rows(description: Description) -> Rows | None:
    """Output by quarter of the prompts."""
    found = description.whole.relation
    if found is None:
        return None
    edges = [None, *found.quartile_edges, None]
    names = [
        f"prompt from {number(low)}" if high is None else f"prompt below {number(high)}" if low is None
        else f"prompt {number(low)} to {number(high)}"
        for low, high in pairwise(edges)
    ]  # fmt: skip
    cells: list[tuple[str, ...]] = [
        (name, *map(number, band)) for name, band in zip(names, found.quartile_band, strict=True)
    ]
    cells.append(("rank correlation of prompt and output", number(found.spearman, 3), "", "", "", ""))
    return Rows(("output tokens", "p5", "p25", "p50", "p75", "p95"), cells)


def program_rows(description: Description) -> Rows | None:
    """Turns and gaps."""
    columns = ("", "count", "mean", *(f"p{q * 100:g}" for q in SHOWN), "note")
    cells: list[tuple[str, ...]] = []
    if (turns := description.turns) is not None:
        at = [number(turns.quantiles[QUANTILES.index(q)]) for q in SHOWN]
        note = f"{percent(turns.single_share)} have one turn"
        cells.append(("turns per program", f"{turns.num_programs:,}", number(turns.mean), *at, note))
    if (gaps := description.gaps) is not None:
        at = [number(gaps.quantiles_s[QUANTILES.index(q)], 3) for q in SHOWN]
        note = f"{percent(gaps.overlap_share)} overlap; over 10 min: {percent(gaps.long_share)} of the gaps, "
        note += f"{percent(gaps.long_time_share)} of their time"
        cells.append(("gap between turns, s", f"{gaps.num:,}", number(gaps.mean_s, 3), *at, note))
    if (growth := description.growth) is not None:
        at = [number(growth.added_quantiles[QUANTILES.index(q)]) for q in SHOWN]
        note = f"{growth.verdict}: {percent(growth.keeps_share)} hold the turn before and its answer"
        cells.append(("prompt less the turn before's", f"{growth.pairs:,}", "", *at, note))
    return Rows(columns, cells) if cells else None


def reuse_rows(description: Description) -> Rows | None:
    """Hit rates by block size."""
    found = description.sharing
    if found is None or not found.reuse:
        return None
    cells: list[tuple[str, ...]] = [
        (
            f"{entry.block_size:,}",
            f"{entry.num_blocks:,}",
            percent(entry.block_hit_rate),
            percent(entry.token_hit_rate),
        )
        for entry in found.reuse
    ]
    return Rows(("block size", "whole blocks", "blocks seen before", "tokens seen before"), cells)


def published_rows(description: Description) -> Rows | None:
    """What is published of the same file, and what was found in it."""
    if description.published is None:
        return None
    return Rows(
        (description.published.file, "published", "ours", "difference", "note"),
        [_compared(row) for row in description.published.rows],
    )


def _compared(row: Compared) -> tuple[str, ...]:
    name = f"{row.name}, {row.unit}" if row.unit not in ("", "share") else row.name
    relation = "" if row.relation == "=" else f"{row.relation} "
    shown = _share if row.unit == "share" else number
    exact = row.relation == "=" and row.ours is not None and row.published
    difference = f"{row.ours / row.published - 1:+.1%}" if exact and row.ours is not None else "-"
    return name, relation + shown(row.published), shown(row.ours), difference, row.source


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g}%"
