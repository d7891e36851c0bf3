"""A comparison for people: the table, and one HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from braid.lab.figures import Picture, duration
from braid.lab.html import cards, definitions, document, figure, section, table
from braid.lab.tables import Rows
from braid.lab.versus.bootstrap import Interval
from braid.lab.versus.comparison import Comparison, Row
from braid.lab.versus.verdict import points, ratio

MORE_CSS = """
.verdict { border-left: 6px solid var(--blue); font-size: 1.15rem }
.verdict.invalid { border-left-color: #b3261e }
tr td:last-child { text-align: left } th:last-child { text-align: left }
"""
COLUMNS = ("", "A", "B", "B / A", "95 %", "B - A", "values", "B is")
DEFINITIONS = (
    (
        "Values",
        "Latencies are of requests answered in both runs; shares and rates are of all that were planned.",
    ),
    (
        "95 %",
        "A bootstrap over blocks of programs that follow each other in time: requests of one program, and those of one "
        "burst, are drawn together. Both runs of a plan are drawn alike.",
    ),
    (
        "Better, worse",
        "The interval, widened so that all rows hold at once, leaves out no difference, and the difference is larger "
        "than the lag of the client. No p-values.",
    ),
    ("Same", "The widened interval lies within 2 % (shares: half a point)."),
    ("Unclear", "Neither. More requests, or more pairs of runs, may tell."),
)


def table_rows(found: Comparison) -> Rows:
    """The table, in words."""
    return Rows(COLUMNS, [_cells(row) for row in found.rows])


def _cells(row: Row) -> tuple[str, ...]:
    values = f"{row.num[0]:,}" if row.num[0] == row.num[1] else f"{row.num[0]:,} / {row.num[1]:,}"
    return (
        row.title,
        amount(row.a, row.metric.unit),
        amount(row.b, row.metric.unit),
        "" if row.ratio is None else f"{row.ratio.value:.2f}x",
        _bounds(row),
        "" if row.difference is None else _signed(row.difference.value, row.metric.unit),
        values if row.statistic else "",
        row.reading or "-",
    )


def _bounds(row: Row) -> str:
    found: Interval | None = row.compared
    if found is None:
        return ""
    return points(found) if row.metric.unit == "share" else ratio(found).partition(" ")[2].strip("()")


def amount(value: float, unit: str) -> str:
    """With its unit."""
    if unit == "s":
        return duration(value)
    return f"{value:.2%}" if unit == "share" else f"{value:,.4g} {unit}"


def _signed(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:+.2f} points"
    sign = "-" if value < 0 else "+"
    return sign + amount(abs(value), unit)


def page(found: Comparison, pictures: Iterable[Picture]) -> str:
    """The whole page as one HTML document."""
    kind = "verdict invalid" if found.invalid else "verdict"
    title = " against ".join(
        f"{letter} {name}".strip() for letter, name in zip("BA", found.labels[0][::-1], strict=True)
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">A comparison of replays by braid</p>',
        f'<section class="{kind}" id="verdict">{escape(found.verdict)}</section>',
        cards(_facts(found)),
        section("Differences between the runs", _list(found.differs), "differs") if found.differs else "",
        section("Numbers", table(table_rows(found)), "numbers"),
        *(figure(picture) for picture in pictures),
        section("Notes", _list(found.notes), "notes") if found.notes else "",
        section("Definitions", definitions(DEFINITIONS), "definitions"),
    ]
    return document(title, parts, MORE_CSS)


def _facts(found: Comparison) -> list[tuple[str, str]]:
    blocks = sum(cut.num for cut in found.cuts)
    facts = [
        ("pairs of runs", str(len(found.labels))),
        ("programs", f"{found.programs:,}"),
        ("blocks", f"{blocks:,}"),
    ]
    if found.failures is not None:
        failed = found.failures
        facts[1:1] = [("requests in both", f"{failed.total:,}")]
        facts += [
            ("failed in A", f"{failed.a_only + failed.both:,}"),
            ("failed in B", f"{failed.b_only + failed.both:,}"),
        ]
    return facts


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
