"""One HTML page about a trace: everything embedded, nothing loaded from anywhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from braid.lab.describe.description import Description
from braid.lab.figures import Picture, duration
from braid.lab.tables import (
    Rows,
    arrival_rows,
    length_rows,
    program_rows,
    quartile_rows,
    reuse_rows,
    summary_rows,
)

CSS = """
:root { --ink: #22303c; --soft: #5c6b79; --line: #dfe5ea; --blue: #0072B2; --paper: #fff; --back: #f4f6f8 }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1020px; margin: 0 auto; padding: 2.5rem 1.2rem 4rem }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 0 0 .3rem }
p { margin: .2rem 0 .8rem } .soft { color: var(--soft) }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.3rem 1.5rem;
  margin-top: 1.2rem; overflow-x: auto }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin-top: 1.2rem }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums } .card span { color: var(--soft) }
img { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line) }
td { text-align: right; border-bottom: 1px solid var(--line) } th, td { padding: .32rem .6rem }
th:first-child, td:first-child, td.text, th.text { text-align: left }
.warning { color: #9a5b00 } .error { color: #b3261e }
dt { font-weight: 600; margin-top: .5rem } dd { margin: 0 0 0 1rem; color: var(--soft) }
nav a { color: var(--blue); text-decoration: none; margin-right: 1rem; white-space: nowrap }
"""

DEFINITIONS = (
    ("CV", "Standard deviation of the gaps between arrivals divided by their mean; 1 for Poisson."),
    ("Gamma shape", "By moments, 1 / CV²; of the gaps within a window. 1 for Poisson, smaller is burstier."),
    (
        "Index of dispersion",
        "Variance of the counts in windows of a length divided by their mean. Full windows from the first arrival; the "
        "partial last one is dropped; the variance is the population's. Poisson has 1 at every length.",
    ),
    (
        "KS",
        "The largest distance between two distribution functions, with the 95 % interval of a bootstrap. No p-values: "
        "with a million rows every law is rejected, in a small window none is.",
    ),
    (
        "BIC gain",
        "How much a law of two components beats one of one, per row, after paying for its parameters.",
    ),
    ("KS 1, KS 2", "KS of the log-normal law of one component, and of the mixture of two."),
    ("Zipf law", "P(k) proportional to k to the power of -s; s by maximum likelihood."),
    ("Hit rate", "Of a prefix cache without limit that holds every earlier prompt, finished or not."),
    ("Boxes", "p25 to p75 with the median; whiskers to p5 and p95."),
    (
        "Lengths",
        "Rows that failed, and rows of unknown or zero length, are left out of every law of lengths.",
    ),
)


def page(description: Description, pictures: Sequence[Picture]) -> str:
    """The whole page as one HTML document."""
    name = description.info.source.replace("\\", "/").rsplit("/", 1)[-1] or "trace"
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">A description of the trace by braid · format {escape(description.info.format or "?")}</p>',
        _cards(description),
        _section("What the audit found", _findings(description), "audit"),
        *_tables(description),
        *(_figure(picture) for picture in pictures),
        _section("Not described", _list(description.skipped.items()), "skipped")
        if description.skipped
        else "",
        _section("Definitions", _list(DEFINITIONS), "definitions"),
        _section("The data", _data(description), "data"),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(name)}</title>'
    body = "\n".join(part for part in parts if part)
    head = f"<head>{head}<style>{CSS}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>\n'


def _cards(description: Description) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in summary_rows(description)
    )
    return f'<div class="cards">{cards}</div>'


def _tables(description: Description) -> Iterable[str]:
    for title, key, rows in (
        ("Lengths", "lengths", length_rows(description)),
        ("Arrivals", "arrivals", arrival_rows(description)),
        ("Output by quarter of the prompts", "quarters", quartile_rows(description)),
        ("Programs", "programs", program_rows(description)),
        ("Prefixes seen before", "prefixes", reuse_rows(description)),
    ):
        if rows is not None:
            yield _section(title, _table(rows), key)


def _section(title: str, inner: str, key: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>\n{inner}</section>'


def _figure(picture: Picture) -> str:
    data = b64encode(picture.png).decode()
    image = f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
    return _section(picture.title, f'<p class="soft">{escape(picture.text)}</p>\n{image}', picture.name)


def _table(rows: Rows) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows.cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _findings(description: Description) -> str:
    if not description.findings:
        return '<p class="soft">Nothing odd.</p>'
    rows = "".join(
        f'<tr><td class="{escape(found.level)}">{escape(found.level)}</td><td class="text">{escape(found.name)}</td>'
        f'<td>{found.count:,}</td><td class="text">{escape(found.text)}</td></tr>'
        for found in description.findings
    )
    head = '<th>level</th><th class="text">finding</th><th>count</th><th class="text">what</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"
    )


def _data(description: Description) -> str:
    info = description.info
    known = {
        "Source": info.source,
        "SHA-256": info.sha256,
        "Clock": f"times sit on a grid of {duration(info.t_quantum_s)}" if info.t_quantum_s else "",
        "Licence": info.licence or "not stated",
        "Citation": info.citation,
        "Notes": " ".join(info.notes),
    }
    return _list((name, text) for name, text in known.items() if text)
