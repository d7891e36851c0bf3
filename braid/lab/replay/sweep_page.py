"""A sweep as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from braid.lab.figures import Picture, duration
from braid.lab.html import cards, definitions, document, figure, section, table
from braid.lab.replay.sweep import Sweep
from braid.lab.replay.sweep_words import sentence, table_rows

MORE_CSS = """
.verdict { border-left: 6px solid var(--blue); font-size: 1.15rem }
tr td:last-child { text-align: left } th:last-child { text-align: left }
"""
DEFINITIONS = (
    (
        "Load",
        "A factor on the trace by whole programs, gaps inside programs untouched; or programs per second.",
    ),
    (
        "Attainment",
        "Share of the planned requests of the measured window that kept every limit; failed ones missed.",
    ),
    (
        "95 %",
        "A bootstrap over blocks of programs, or the binomial law, whichever is wider. A load whose interval holds the "
        "target is repeated; if repeats do not settle it, their mean decides and the load is called close.",
    ),
    (
        "Out of reach",
        "The replay was stopped: more than twice the misses that the target allows were certain.",
    ),
    ("Invalid", "The client was late, or too few requests were measured: the replay decides nothing."),
)


def page(found: Sweep, source: str, url: str, pictures: Iterable[Picture]) -> str:
    """The whole page as one HTML document."""
    title = f"Sweep of {source.rpartition('/')[2] or 'a trace'}"
    notes = "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in found.notes) + "</ul>"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">The highest load that {escape(url)} bears, by braid</p>',
        f'<section class="verdict" id="verdict">{escape(sentence(found))}</section>',
        cards(_facts(found)),
        *(figure(picture) for picture in pictures),
        section("Replays", table(table_rows(found)), "replays"),
        section("Notes", notes, "notes") if found.notes else "",
        section("Definitions", definitions(DEFINITIONS), "definitions"),
    ]
    return document(title, parts, MORE_CSS)


def _facts(found: Sweep) -> list[tuple[str, str]]:
    options, answer = found.options, found.answer
    met, missed = ("-" if load is None else f"{load:.3g}" for load in (answer.met, answer.missed))
    took = sum(point.took_s for point in found.points)
    return [
        ("last met", met),
        ("first missed", missed),
        ("target", f"{options.search.target:.4g}"),
        ("replays", f"{len(found.points)}"),
        ("each", f"{duration(options.warmup_s)} + {duration(options.measure_s)}"),
        ("all together", duration(took)),
    ]
