"""The report of a run as one HTML page, and as a folder with its figures and numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from braid.lab.figures import Picture, duration
from braid.lab.html import cards, definitions, document, figure, section, table
from braid.lab.measures.measure import Measures
from braid.lab.measures.plots import draw_run
from braid.lab.measures.summary import (
    achieved_rows,
    card_pairs,
    condition_pairs,
    failure_rows,
    goodput_rows,
    headline,
    lag_rows,
    latency_rows,
    limits_of,
    outcome_rows,
    rate_rows,
    sentences,
    window_rows,
)
from braid.lab.progress import Progress
from braid.lab.table import TraceError

CSS = """
.banner { border-radius: 10px; padding: 1rem 1.5rem; margin-top: 1.2rem; color: #fff; background: #00735a }
.banner.invalid { background: #b3261e } .banner b { font-size: 1.35rem; display: block }
.banner ul { margin: .4rem 0 0; padding-left: 1.2rem }
.notes { background: #fff6e5; border: 1px solid #f0d9a8; border-radius: 10px; padding: .8rem 1.5rem; margin-top: .8rem }
.notes ul { margin: 0; padding-left: 1.2rem }
.cards { grid-template-columns: repeat(5, 1fr) } @media (max-width: 760px) { .cards { grid-template-columns: 1fr 1fr } }
.said p { font-size: 1.06rem; margin: .15rem 0 } section h3 { font-size: 1rem; margin: 1.2rem 0 .2rem }
details summary { cursor: pointer; color: var(--blue); margin: .3rem 0 } #windows table { font-size: .82rem }
#windows th, #windows td { padding: .22rem .4rem; white-space: nowrap }
td.text { overflow-wrap: anywhere; color: var(--soft) }
"""

DEFINITIONS = (
    (
        "Scheduled time",
        "When the plan says that a request is to be sent: by the trace's clock, or the end of what it waits for plus "
        "the recorded gap. All latency counts from it, so a late client or a full connection pool cannot hide.",
    ),
    ("TTFT", "From the scheduled time to the first token."),
    (
        "TBT",
        "Between consecutive tokens. Tokens of one piece of the stream share its time, so TBT inside a piece is 0; the "
        "gaps between pieces are given beside it.",
    ),
    ("TPOT", "The mean TBT of one request; none for a single token."),
    ("E2E", "From the scheduled time to the end of the answer."),
    (
        "JCT",
        "Of a program: from its first scheduled request to its last end, for programs of which every request was "
        "answered. A lone request is a program of its own.",
    ),
    (
        "SLO attainment, goodput",
        "Requests that kept every limit, as a share of all planned requests of the window, and per second of it. "
        "Refused, failed and unsent requests count as missed; one cancelled as planned is judged by what it saw.",
    ),
    (
        "Send lag",
        "Actual less scheduled time of the send, absolute, on one monotonic clock. A run whose p99 exceeds the limit "
        "is invalid.",
    ),
    (
        "Read lag",
        "The longest that the client was busy with other work before it read a piece of an answer: no time of that "
        "answer is more wrong than that. Its p99 has the same limit.",
    ),
    (
        "Throughput",
        "What happened within the window, whenever it was scheduled: answers that ended, prompts whose answer began, "
        "output tokens that came.",
    ),
    ("Window", "The stretch of time whose scheduled requests are measured: after the warm-up, before the drain."),
)  # fmt: skip


def write_page(found: Measures, path: Path, progress: Progress | None = None) -> None:
    """The page with its figures inside, as one file.

    Raises:
        TraceError: ``path`` cannot be written.
    """
    _write(path, page(found, draw_run(found, progress)).encode())


def write_folder(found: Measures, folder: Path, progress: Progress | None = None) -> None:
    """``page.html``, ``measures.json`` and the figures (PNG) into a folder, which is made if it is not there.

    Raises:
        TraceError: it cannot be written.
    """
    pictures = draw_run(found, progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraceError(f"cannot write into {folder}: {error.strerror or error}") from None
    for picture in pictures:
        _write(folder / f"{picture.name}.png", picture.png)
    _write(folder / "page.html", page(found, pictures).encode())
    _write(folder / "measures.json", json.dumps(found.as_json(), indent=1, allow_nan=False).encode() + b"\n")


def page(found: Measures, pictures: Sequence[Picture]) -> str:
    """The whole page as one HTML document."""
    head = found.head
    server = f" ({head.server})" if head.server else ""
    under = (
        f"Replay of {_name(head.source)} against {head.url}{server}, {head.model} · {_when(head.started_at)}"
    )
    parts = [
        f'<h1>{escape(head.label)}</h1>\n<p class="soft">{escape(under)}</p>',
        _banner(found),
        cards(card_pairs(found)),
        f'<div class="said">{section("In words", _paragraphs(sentences(found)), "words")}</div>',
        *_tables(found),
        *(figure(picture) for picture in pictures),
        section("Over time", _windows(found), "windows") if found.windows else "",
        section("What differs from the trace", _differences(found), "differences"),
        section("How it was run", _conditions(found), "conditions"),
        section("Definitions", definitions(DEFINITIONS), "definitions"),
        section("The data", _data(found), "data"),
    ]
    return document(head.label, parts, CSS)


def _banner(found: Measures) -> str:
    reasons = _bullets(found.verdict.reasons) if found.verdict.reasons else ""
    kind = "valid" if found.valid else "invalid"
    word, _, rest = headline(found).partition(": ")
    banner = f'<div class="banner {kind}"><b>{word}</b>{escape(rest[:1].upper() + rest[1:])}{reasons}</div>'
    if found.verdict.warnings:
        banner += f'\n<div class="notes">{_bullets(found.verdict.warnings)}</div>'
    return banner


def _tables(found: Measures) -> Iterator[str]:
    yield section("Latency", f"{table(latency_rows(found))}<h3>The client's own delays</h3>{table(lag_rows(found))}",
                  "latencies")  # fmt: skip
    limits = limits_of(found.slo)
    per_s = "" if found.goodput.per_s is None else f" Goodput: {found.goodput.per_s:,.3g} requests/s."
    text = f"Limits: {limits}.{per_s}" if limits else "No limits were given: every answer counts as good."
    yield section("Goodput", f'<p class="soft">{escape(text)}</p>{table(goodput_rows(found))}', "goodput")
    rates, failures = rate_rows(found), failure_rows(found)
    if rates is not None:
        yield section("Throughput", table(rates), "throughput")
    more = f"<h3>Why</h3>{table(failures)}" if failures is not None else ""
    yield section("Outcomes in numbers", table(outcome_rows(found)) + more, "counts")
    wrong = "".join(
        f"<li>request {entry.request:,}: {entry.planned:,} planned, {entry.counted:,} counted</li>"
        for entry in found.achieved.prompt_examples
    )
    listed = f'<h3 class="error">Prompts of other lengths</h3><ul>{wrong}</ul>' if wrong else ""
    yield section("Planned and done", table(achieved_rows(found)) + listed, "achieved")


def _windows(found: Measures) -> str:
    text = f"Steps of {duration(found.window_step_s)}; those marked * are not measured."
    return (
        f'<p class="soft">{escape(text)}</p><details><summary>{len(found.windows):,} steps</summary>'
        f"{table(window_rows(found))}</details>"
    )


def _differences(found: Measures) -> str:
    head = found.head
    replies = (
        "a stand-in of the same length for earlier replies"
        if head.history == "recorded"
        else "its own replies"
    )
    notes = [*head.notes, *([f"Later turns hold {replies}."] if found.has_programs else [])]
    notes += [
        f"{num:,} rows of the trace were not planned: {reason.replace('_', ' ')}."
        for reason, num in head.unsendable.items()
        if num
    ]
    return _bullets(notes) if notes else '<p class="soft">Nothing that is known.</p>'


def _conditions(found: Measures) -> str:
    head = found.head
    low, high = head.window_s
    pairs = [
        ("Client", head.machine),
        ("Endpoint", head.endpoint),
        ("Measured window", f"{low:,.1f} s to {high:,.1f} s from the start"),
        ("Plan, SHA-256", head.plan_sha256),
    ]
    pairs += [
        (title, " · ".join(f"{name} {value}" for name, value in condition_pairs(values)))
        for title, values in (("Options of the plan", head.plan), ("Options of the run", head.run))
        if values
    ]
    return definitions(pairs)


def _data(found: Measures) -> str:
    head = found.head
    known = {
        "Source": head.source,
        "SHA-256": head.data_sha256,
        "Licence": head.licence or "not stated",
        "Citation": head.citation,
    }
    return definitions((name, text) for name, text in known.items() if text)


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _when(started_at: str) -> str:
    """``2026-03-01 09:00 UTC``."""
    day, _, time = started_at.partition("T")
    return f"{day} {time[:5]}{' UTC' if time.endswith(('+00:00', 'Z')) else ''}"


def _name(source: str) -> str:
    return source.replace("\\", "/").rsplit("/", 1)[-1] or "a trace"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}") from None
