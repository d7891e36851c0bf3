"""Published numbers beside ours: only for the very file, and from the description itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.lab.describe.description import Description, describe
from braid.lab.describe.published import BURSTGPT, Fact, KnownFile, published
from braid.lab.page import page
from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceInfo, conform
from braid.lab.tables import published_rows

ROWS, FAILED, DAYS = 4000, 200, 3


@pytest.fixture(scope="module")
def described() -> Description:
    """A small trace with BurstGPT's columns: two models, both kinds, sessions, failures."""
    rng = np.random.default_rng(5)
    failed = np.arange(ROWS) % (ROWS // FAILED) == 7
    chat = np.arange(ROWS) % 4 == 0
    times = np.floor(np.sort(rng.uniform(0, DAYS * 86400, ROWS)))
    times[[0, -1]] = 0, DAYS * 86400
    frame = pl.DataFrame(
        {
            "t_s": times,
            "model": np.where(np.arange(ROWS) % 5 == 0, "GPT-4", "ChatGPT"),
            "kind": np.where(chat, "conv", "api"),
            "program_id": pl.Series((np.arange(ROWS) // 16).astype(str)).set(pl.Series(~chat), None),
            "in_tok": rng.lognormal(5, 1, ROWS).astype(int) + 1,
            "out_tok": np.where(failed, 0, rng.lognormal(4, 1, ROWS).astype(int) + 1),
            "status": np.where(failed, "failed", "ok"),
            "gap_before_s": pl.Series(rng.lognormal(4, 1, ROWS)).set(pl.Series(~chat), None),
        }
    )
    return describe(Trace(conform(frame), TraceInfo(source="small.csv", format="burstgpt", sha256="5ma11")))


def file_of(description: Description, **changes: object) -> KnownFile:
    facts = (
        Fact("failed", 0.04, lambda d: d.failures.share, unit="share", of_all=True),
        Fact("longest turn", 10.0, lambda d: d.turns.max if d.turns else None, relation=">"),
        Fact("prefixes", 3.0, lambda d: d.sharing.cached_share if d.sharing else None),
    )
    known = KnownFile(
        name="small", format="burstgpt", ok=ROWS - FAILED, failed=FAILED, span_s=DAYS * 86400.0, facts=facts
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def test_the_very_file_is_compared(described: Description) -> None:
    found = published(described, [file_of(described)])
    assert found is not None
    assert [(row.name, row.published, row.ours) for row in found.rows] == [
        ("failed", 0.04, 0.05), ("longest turn", 10.0, 4.0), ("prefixes", 3.0, None),
    ]  # fmt: skip
    rows = published_rows(replace(described, published=found))
    assert rows is not None
    assert rows.cells == [
        ("failed", "4%", "5%", "+25.0%", "audits by third parties"),
        ("longest turn", "> 10", "4", "-", "audits by third parties"),
        ("prefixes", "3", "-", "-", "audits by third parties"),
    ]


@pytest.mark.parametrize(
    "changes",
    [{"ok": ROWS - FAILED + 1}, {"failed": FAILED + 1}, {"span_s": 1e6}, {"format": "azure"}],
)
def test_another_file_is_not(described: Description, changes: dict[str, object]) -> None:
    assert published(described, [file_of(described, **changes)]) is None


def test_the_hash_is_enough(described: Description) -> None:
    assert published(described, [file_of(described, ok=1, sha256="5ma11")]) is not None


def test_an_edition_without_failures_has_no_shares_of_them(described: Description) -> None:
    answered = replace(
        described, rows=ROWS - FAILED, failures=replace(described.failures, statuses={"ok": ROWS - FAILED})
    )
    found = published(answered, [file_of(described)])
    assert found is not None
    assert [row.name for row in found.rows] == ["longest turn", "prefixes"]


def test_every_published_number_has_its_place_in_a_description(described: Description) -> None:
    found = {fact.name: fact.found(described) for known in BURSTGPT for fact in known.facts}
    assert None not in found.values()
    answered = (np.arange(ROWS) % (ROWS // FAILED) != 7).nonzero()[0]
    assert found["answered by GPT-4"] == (answered % 5 == 0).sum()
    assert found["conversations, of the answered"] == pytest.approx((answered % 4 == 0).mean())
    assert found["sessions"] == ROWS // 16
    assert found["sessions of at most four turns"] == 1.0
    assert found["failed, of conversations"] == pytest.approx(0.0)
    assert ROWS / (DAYS + 1) < (found["busiest day"] or 0) < ROWS


def test_nothing_is_shown_for_other_traces(described: Description, shared_data: Path) -> None:
    assert described.published is None
    assert "Published and ours" not in page(described, ())
    part = describe(read_trace(shared_data / "traces/burstgpt/BurstGPT_1_first30_rows.csv"))
    assert part.info.format == "burstgpt"
    assert part.published is None
    assert part.as_json()["published"] is None
