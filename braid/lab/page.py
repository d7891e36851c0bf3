"""One HTML page about a trace: everything embedded, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from braid.lab.describe.description import Description
from braid.lab.figures import Picture, duration
from braid.lab.html import cards, definitions, document, figure, section, table
from braid.lab.tables import (
    arrival_rows,
    length_rows,
    program_rows,
    published_rows,
    quartile_rows,
    reuse_rows,
    summary_rows,
)

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
        cards(summary_rows(description)),
        section("What the audit found", _findings(description), "audit"),
        *_tables(description),
        *(figure(picture) for picture in pictures),
        section("Not described", definitions(description.skipped.items()), "skipped")
        if description.skipped
        else "",
        section("Definitions", definitions(DEFINITIONS), "definitions"),
        section("The data", _data(description), "data"),
    ]
    return document(name, parts)


def _tables(description: Description) -> Iterable[str]:
    for title, key, rows in (
        ("Lengths", "lengths", length_rows(description)),
        ("Arrivals", "arrivals", arrival_rows(description)),
        ("Output by quarter of the prompts", "quarters", quartile_rows(description)),
        ("Programs", "programs", program_rows(description)),
        ("Prefixes seen before", "prefixes", reuse_rows(description)),
        ("Published and ours", "published", published_rows(description)),
    ):
        if rows is not None:
            yield section(title, table(rows), key)


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
    return definitions((name, text) for name, text in known.items() if text)
