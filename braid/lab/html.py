"""Pieces of the lab's HTML pages: one style, everything embedded, nothing loaded from anywhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape

from braid.lab.figures import Picture
from braid.lab.tables import Rows

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
dt { font-weight: 600; margin-top: .5rem } dd { margin: 0 0 0 1rem; color: var(--soft); overflow-wrap: anywhere }
nav a { color: var(--blue); text-decoration: none; margin-right: 1rem; white-space: nowrap }
"""


def document(title: str, parts: Iterable[str], more_css: str = "") -> str:
    """A whole page; empty parts are left out."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f"<head>{head}<style>{CSS}{more_css}</style></head>"
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>\n'


def section(title: str, inner: str, key: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>\n{inner}</section>'


def cards(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs (name, value): the few numbers to see first."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in pairs
    )
    return f'<div class="cards">{inner}</div>'


def figure(picture: Picture) -> str:
    """A section of its own."""
    data = b64encode(picture.png).decode()
    image = f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
    return section(picture.title, f'<p class="soft">{escape(picture.text)}</p>\n{image}', picture.name)


def table(rows: Rows) -> str:
    """Columns named ``note``, and the first, hold text."""
    texts = [' class="text"' if name == "note" else "" for name in rows.columns]
    head = "".join(f"<th{text}>{escape(name)}</th>" for name, text in zip(rows.columns, texts, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{text}>{escape(cell)}</td>" for cell, text in zip(row, texts, strict=True))
        + "</tr>"
        for row in rows.cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs (name, text)."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"
    )
