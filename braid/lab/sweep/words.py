"""A sweep in words: the sentence, the table of its points, and JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from braid.core.metrics import SLO
from braid.lab.figures.style import duration
from braid.lab.sweep.sweep import Point, Sweep, SweepOptions, rate_at
from braid.lab.tables import Rows


def sentence(found: Sweep) -> str:
    """What was found, and how sure it is."""
    text = _answer(found)
    notes = []
    ends = (found.answer.met, found.answer.missed)
    if any(level.close for level in found.levels if level.load in ends):
        notes.append(
            "it is close: repeats of an end of this stretch did not settle it, and their mean decided"
        )
    invalid = sum(bool(point.invalid) for point in found.points)
    if invalid:
        notes.append(f"{invalid} of {len(found.points)} replays were invalid and decided nothing")
    return "; ".join([text, *notes]) + "."


def _answer(found: Sweep) -> str:
    met, missed = (None if load is None else _at(load, found) for load in found.answer[1:])
    goal = f"{limits(found.options.slo)} for {share_text(found.options.search.target)} of the requests"
    match found.answer.kind:
        case "bracketed":
            return f"The server keeps {goal} at {met}, and no longer at {missed}"
        case "all_met":
            return f"The server keeps {goal} up to the highest load allowed, {met}: its limit was not reached"
        case "none_met":
            return f"The server does not keep {goal}, not even at {missed}, the lowest load allowed"
        case "client_limited":
            return f"The server keeps {goal} at {met}; at {missed} every replay was invalid, so its limit is unknown"
        case "unmeasured":
            return f"Nothing is known of {goal}: no replay was valid"
        case _:
            known = [
                f"{word} at {load}" for word, load in (("kept", met), ("missed", missed)) if load is not None
            ]
            so_far = ", ".join(known) or "no load was decided"
            return f"Stopped before it was known whether the server keeps {goal}; so far: {so_far}"


def _at(load: float, found: Sweep) -> str:
    return f"{load_text(load, found.options)} ({rate_at(found.points, load):.3g} requests/s)"


def limits(slo: SLO) -> str:
    """``TTFT <= 1 s and TPOT <= 100 ms``."""
    pairs = (("TTFT", slo.ttft), ("TPOT", slo.tpot), ("E2E", slo.e2e), ("JCT", slo.jct))
    return " and ".join(f"{name} <= {duration(limit)}" for name, limit in pairs if limit is not None)


def share_text(share: float) -> str:
    """``90 %``."""
    return f"{100 * share:.4g} %"


def load_text(load: float, options: SweepOptions) -> str:
    """``2.83x`` or ``2.83 programs/s``."""
    return f"{load:.3g}x the load" if options.by == "factor" else f"{load:.3g} programs/s"


COLUMNS = (
    "point", "load", "requests/s", "attainment", "95 %", "goodput/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99",
    "failed", "lag p99", "took", "note",
)  # fmt: skip


def table_rows(found: Sweep) -> Rows:
    """Every point in the order it was played."""
    return Rows(COLUMNS, [row_of(point, found.options) for point in found.points])


def row_of(point: Point, options: SweepOptions) -> tuple[str, ...]:
    """A point in words."""
    bounds = "" if point.low is None or point.high is None else f"{point.low:.1%} .. {point.high:.1%}"
    times = (point.ttft_p50, point.ttft_p99, point.tpot_p50, point.tpot_p99)
    return (
        str(point.number + 1),
        f"{point.load:.3g}",
        f"{point.planned_rate:.3g}",
        _share(point.attainment),
        "" if point.hopeless else bounds,
        "" if point.goodput is None else f"{point.goodput:.3g}",
        *("" if value is None else duration(value) for value in times),
        _share(point.failed_share),
        "" if point.lag_p99 is None else duration(point.lag_p99),
        duration(point.took_s),
        note_of(point, options),
    )


HIDDEN = ("TPOT p50", "took")
"""Columns that a page has no room for."""


def page_rows(found: Sweep) -> Rows:
    """The table without the reasons of invalid replays, which are ``reasons``, and two columns."""
    kept = [number for number, name in enumerate(COLUMNS) if name not in HIDDEN]
    rows = table_rows(found).cells
    cells = [(*(row[number] for number in kept[:-1]), row[-1].partition(":")[0]) for row in rows]
    return Rows(tuple(COLUMNS[number] for number in kept), cells)


def reasons(found: Sweep) -> list[str]:
    """Why replays were invalid, one sentence or more each."""
    return [f"Replay {point.number + 1}: {point.invalid}" for point in found.points if point.invalid]


def line_of(point: Point, options: SweepOptions) -> str:
    """A point in one line, as it ends."""
    note = note_of(point, options)
    if point.attainment is None:
        return f"  {load_text(point.load, options)}: {note}"
    kept = f"{'at most ' if point.hopeless else ''}{point.attainment:.1%} kept the limits"
    ttft = "" if point.ttft_p99 is None else f", TTFT p99 {duration(point.ttft_p99)}"
    return f"  {load_text(point.load, options)}, {point.planned_rate:.3g} requests/s: {kept}{ttft} ({note})"


def note_of(point: Point, options: SweepOptions) -> str:
    if point.invalid:
        return f"INVALID: {point.invalid}"
    if point.hopeless:
        return "out of reach, stopped"
    if point.low is None or point.high is None:
        return ""
    target = options.search.target
    return "met" if point.low >= target else "missed" if point.high < target else "near the target"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def as_json(found: Sweep) -> dict[str, Any]:
    """Plain data; the keys are the fields' names."""
    options = found.options
    return {
        "sentence": sentence(found),
        "answer": found.answer._asdict(),
        "by": options.by,
        "slo": {
            "ttft": options.slo.ttft,
            "tpot": options.slo.tpot,
            "e2e": options.slo.e2e,
            "jct": options.slo.jct,
        },
        "search": {name: getattr(options.search, name) for name in options.search.__slots__},
        "warmup_s": options.warmup_s,
        "measure_s": options.measure_s,
        "seed": options.seed,
        "levels": [_finite(level._asdict()) for level in found.levels],
        "points": [_finite(point._asdict()) for point in found.points],
        "notes": found.notes,
    }


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in fields.items()
    }
