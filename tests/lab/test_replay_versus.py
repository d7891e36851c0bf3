"""Comparisons of made-up runs whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from braid.cli.app import main
from braid.core.metrics import SLO
from braid.lab.replay.outcome import Outcome
from braid.lab.replay.record import Run, save_run
from braid.lab.table import TraceError
from braid.lab.versus.comparison import Comparison, Row
from braid.lab.versus.versus import versus

Make = Callable[..., Run]
NUM = 400


@pytest.fixture(scope="module")
def server(make_run: Make) -> Make:
    """A run of 400 programs against a server of a given speed; the load's bursts are the same for all."""

    def make(
        ttft: float = 1.0,
        noise: int = 0,
        failed: tuple[int, ...] = (),
        more: int = 0,
        num: int = NUM,
        **head: Any,
    ) -> Run:
        load, own = np.random.default_rng(1), np.random.default_rng(noise)
        at, level = np.sort(load.uniform(0, 100, num)), load.normal(0, 0.5, num)
        first = ttft * 0.4 * np.exp(level + own.normal(0, 0.2, num))
        tokens = load.integers(5, 40, num) + more
        between = 0.02 * np.exp(own.normal(0, 0.1, num))
        outcomes = []
        for number in range(num):
            begin = float(at[number])
            if number in failed:
                outcomes.append(
                    Outcome(
                        request=number,
                        status="refused",
                        scheduled_s=begin,
                        sent_s=begin,
                        end_s=begin,
                        attempts=1,
                    )
                )
                continue
            times = begin + first[number] + between[number] * np.arange(tokens[number])
            outcomes.append(
                Outcome(
                    request=number, status="ok", scheduled_s=begin, sent_s=begin, chunk_times_s=tuple(times.tolist()),
                    chunk_tokens=(1,) * int(tokens[number]), end_s=float(times[-1]), http_status=200, prompt_tokens=10,
                    completion_tokens=int(tokens[number]), cached_tokens=4, attempts=1,
                )
            )  # fmt: skip
        return make_run(outcomes, **head)

    return make


def row(found: Comparison, title: str) -> Row:
    return next(row for row in found.rows if row.title == title)


def test_a_faster_server_is_called_faster(server: Make) -> None:
    found = versus([(server(1.0, 1), server(0.6, 2))], SLO(ttft=0.5))
    assert found.verdict.startswith("B is better than A: TTFT p50 0.6")
    for part in ("E2E p50 0.", "SLO attainment ", "no clear difference in TPOT"):
        assert part in found.verdict
    ttft = row(found, "TTFT p50")
    assert ttft.ratio is not None
    assert ttft.ratio.low < 0.6 < ttft.ratio.high
    assert ttft.reading == "better"
    assert ttft.num == (NUM, NUM)
    assert ttft.difference is not None
    assert ttft.difference.value == pytest.approx(ttft.b - ttft.a)
    assert not any(row.statistic == "p99" and row.metric.name == "ttft" for row in found.rows), (
        "too few beyond it"
    )
    assert not any(row.metric.name == "jct" for row in found.rows), (
        "programs of one request have no JCT of their own"
    )
    assert row(found, "SLO attainment").reading == "better"
    other = versus([(server(0.6, 2), server(1.0, 1))])
    assert other.verdict.startswith("B is slower than A: TTFT p50 1.")
    assert row(other, "TTFT p50").reading == "worse"


def test_what_the_client_is_late_by_is_no_difference(server: Make) -> None:
    a, b = server(1.0, 1), server(0.6, 2)
    assert row(versus([(a, b)]), "TTFT p50").reading == "better"
    busy = Run(b.head, b.frame.with_columns(read_lag_s=pl.lit(0.5)))
    found = row(versus([(a, busy)]), "TTFT p50")
    assert found.late == pytest.approx(0.5)
    assert found.reading == "unclear"
    assert found.ratio == row(versus([(a, b)]), "TTFT p50").ratio


def test_a_run_against_itself_is_the_same(server: Make) -> None:
    run = server()
    found = versus([(run, run)], SLO(ttft=0.5))
    assert found.verdict == "B and A are the same within 2%."
    assert all(row.reading in ("same", "") for row in found.rows)
    assert all(row.ratio is None or tuple(row.ratio) == (1, 1, 1) for row in found.rows)
    assert "A and B are the same run." in found.notes


def test_chance_alone_is_never_called_a_difference(server: Make) -> None:
    """Two draws of one server. With 22 rows each, one in three comparisons would err without widening."""
    wrong = 0
    for seed in range(6):
        found = versus([(server(1.0, 2 * seed + 10), server(1.0, 2 * seed + 11))], SLO(ttft=0.5), seed=seed)
        wrong += any(row.reading in ("better", "worse") for row in found.rows)
    assert wrong <= 1


def test_failures_in_one_only_are_said(server: Make) -> None:
    found = versus([(server(failed=(3, 5, 8)), server(failed=(8,)))])
    assert found.failures == (NUM, 2, 0, 1)
    assert "2 of 400 requests failed in A only, 1 in both" in found.verdict
    assert row(found, "TTFT p50").num == (NUM - 3, NUM - 3)
    assert row(found, "refused").a == pytest.approx(3 / NUM)


def test_a_fast_server_that_refuses_is_not_just_faster(server: Make) -> None:
    found = versus([(server(1.0, 1), server(0.6, 2, failed=tuple(range(0, NUM, 4))))], SLO(ttft=2.0))
    assert found.verdict.startswith("B is better than A in TTFT p50")
    assert "but worse in SLO attainment" in found.verdict
    assert "refused 0.0% -> 25.0%" in found.verdict
    assert "100 of 400 requests failed in B only" in found.verdict


def test_a_server_that_writes_less_is_not_called_faster_for_it(server: Make) -> None:
    loose = {"output_enforced": False}
    found = versus([(server(1.0, 1, more=20, **loose), server(1.0, 2, **loose))])
    assert "E2E, JCT and throughput are not judged, since B wrote 0.5" in found.verdict
    assert "E2E p" not in found.verdict
    assert row(found, "E2E p50").reading == "better", "the table says what was seen"
    assert any("not enforced" in note for note in found.notes)


def test_an_invalid_run_comes_first(server: Make) -> None:
    found = versus([(server(1.0, 1), server(0.6, 2, problems=("a sender died",)))])
    assert found.verdict.startswith("INVALID, so nothing below is a result: B: A sender died.")
    assert "Otherwise: B is " in found.verdict


def test_different_plans_are_refused_with_what_differs(server: Make) -> None:
    a = server()
    b = server(num=NUM - 10, plan_sha256="ef" * 32, plan={"arrivals": "trace", "turns": "gap", "seed": 7})
    with pytest.raises(TraceError, match=r"different plans.*seed 0 and 7; 400 and 390 requests.*--unpaired"):
        versus([(a, b)])
    found = versus([(a, b)], unpaired=True)
    assert not found.paired
    assert found.failures is None
    assert any("seed 0 and 7" in note for note in found.notes)
    assert row(found, "TTFT p50").num == (NUM, NUM - 10)


def test_an_unpaired_interval_is_wider(server: Make) -> None:
    pair = (server(1.0, 1), server(0.6, 2))
    widths = []
    for unpaired in (False, True):
        ratio = row(versus([pair], unpaired=unpaired), "TTFT p50").ratio
        assert ratio is not None
        widths.append(ratio.high - ratio.low)
    assert widths[1] > 1.3 * widths[0]


def test_too_few_programs_give_no_verdict(server: Make) -> None:
    found = versus([(server(1.0, 1, num=6), server(0.2, 2, num=6))])
    assert found.verdict == "No verdict on B against A: too few programs were measured for an interval."
    assert all(row.ratio is None for row in found.rows)
    assert any("Intervals need 10 programs, and 6 were measured" in note for note in found.notes)


def test_repeats_are_combined_and_labels_told(server: Make) -> None:
    pairs = [
        (server(1.0, 2 * seed, label="old"), server(0.6, 2 * seed + 1, label="new")) for seed in range(3)
    ]
    found = versus(pairs)
    assert found.verdict.startswith("B (new) is faster than A (old): TTFT ")
    assert found.verdict.endswith("; 3 pairs of runs.")
    assert row(found, "TTFT p99").num == (3 * NUM, 3 * NUM)
    assert not any("One pair" in note for note in found.notes)
    assert versus(pairs).as_json() == found.as_json(), "seeded"


def test_a_stopped_run_counts_only_what_it_reached(server: Make, make_run: Make) -> None:
    whole = server()
    names = Outcome.__struct_fields__
    rows = whole.frame.select(names).to_dicts()
    outcomes = [
        Outcome(
            **{
                **found,
                "chunk_times_s": tuple(found["chunk_times_s"]),
                "chunk_tokens": tuple(found["chunk_tokens"]),
            }
        )
        if number < 200
        else Outcome(request=number, status="unsent", reason="stopped")
        for number, found in enumerate(rows)
    ]
    part = make_run(outcomes, {"start_s": whole.frame["start_s"]}, stopped="interrupted")
    found = versus([(whole, part)])
    assert found.failures == (200, 0, 0, 0)
    assert any("B ended before its plan did: interrupted." in note for note in found.notes)


def test_the_verb(server: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (
        ("a", server(1.0, 1)),
        ("b", server(0.6, 2)),
        ("c", server(0.6, 2, problems=("late",))),
    ):
        save_run(run, tmp_path / name)
    words = ["trace", "versus", str(tmp_path / "a"), str(tmp_path / "b"), "--slo-ttft", "0.5"]
    out, page = tmp_path / "x.json", tmp_path / "x.html"
    assert main([*words, "--json", str(out), "--html", str(page)]) == 0
    assert "B is better than A: TTFT p50 0." in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told["verdict"].startswith("B is better")
    first = told["rows"][0]
    assert first["metric"] == "ttft"
    assert first["ratio"]["low"] < first["ratio"]["value"] < first["ratio"]["high"] < 1
    html = page.read_text()
    assert told["verdict"].replace("->", "-&gt;") in html
    assert html.count("<img") == 3
    assert "http" not in html.partition("</style>")[2].replace("http://127.0.0.1", "")
    assert main(["trace", "versus", str(tmp_path / "a"), str(tmp_path / "c")]) == 3
    assert main(["trace", "versus", str(tmp_path / "a")]) == 2
    assert "runs come in pairs" in capsys.readouterr().err
    assert main(["trace", "versus", str(tmp_path / "a"), str(tmp_path / "absent")]) == 2
    assert "absent: is no run" in capsys.readouterr().err
