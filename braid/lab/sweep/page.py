"""A sweep as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from braid.lab.figures import Picture, duration
from braid.lab.html import cards, definitions, document, figure, section, table
from braid.lab.sweep.sweep import Sweep
from braid.lab.sweep.words import page_rows, reasons, sentence, share_text

MORE_CSS = """
.verdict { border-left: 6px solid var(--blue); font-size: 1.15rem }
#replays table { font-size: .78rem } #replays th, #replays td { padding: .28rem .32rem; white-space: nowrap }
#replays tr td:last-child { text-align: left; white-space: normal } #replays th:last-child { text-align: left }
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
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">The highest load that {escape(url)} bears, by braid</p>',
        f'<section class="verdict" id="verdict">{escape(sentence(found))}</section>',
        cards(_facts(found)),
        *(figure(picture) for picture in pictures),
        section("Replays", table(page_rows(found)), "replays"),
        section("Invalid replays", _list(reasons(found)), "invalid") if reasons(found) else "",
        section("Notes", _list(found.notes), "notes") if found.notes else "",
        section("Definitions", definitions(DEFINITIONS), "definitions"),
    ]
    return document(title, parts, MORE_CSS)


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _facts(found: Sweep) -> list[tuple[str, str]]:
    options, answer = found.options, found.answer
    met, missed = ("-" if load is None else f"{load:.3g}" for load in (answer.met, answer.missed))
    took = sum(point.took_s for point in found.points)
    return [
        ("last met", met),
        ("first missed", missed),
        ("target", share_text(options.search.target)),
        ("replays", f"{len(found.points)}"),
        ("each", f"{duration(options.warmup_s)} + {duration(options.measure_s)}"),
        ("all together", duration(took)),
    ]
