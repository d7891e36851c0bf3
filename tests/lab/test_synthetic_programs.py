from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from braid.lab.replay.planning.plan import PlanOptions, build_plan
from braid.lab.synthetic.programs import KINDS, synthesize
from braid.lab.synthetic.summary import figures, report, wanted
from braid.lab.table import Trace, TraceError, load, save


@pytest.fixture(scope="module", params=sorted(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trace(name: str) -> Trace:
    return synthesize(name, 10_000, seed=5)


def test_means_and_deviations_are_those_that_were_published(name: str, trace: Trace) -> None:
    made = figures(trace)
    assert made.programs == 10_000
    for quantity, spread in wanted(KINDS[name]).items():
        got = getattr(made, quantity)
        assert got.mean == pytest.approx(spread.mean, rel=0.03), quantity
        assert got.sd == pytest.approx(spread.sd, rel=0.08), quantity


def test_published_figures_are_as_the_paper_has_them() -> None:
    swe, bfcl = KINDS["swe-bench"], KINDS["bfcl"]
    assert (swe.turns, swe.gap_s, swe.tokens) == ((10.9, 2.1), (0.925, 3.55), (70_126, 19_732))
    assert (bfcl.turns, bfcl.gap_s, bfcl.tokens) == ((6.3, 2.3), (1.923, 2.133), (93_256, 68_687))


def test_every_prompt_holds_the_turn_before_and_its_answer(trace: Trace) -> None:
    rows = trace.frame.sort("program_id", "turn")
    held = (pl.col("in_tok") + pl.col("out_tok")).shift(1).over("program_id")
    later = rows.with_columns(held.alias("held")).filter(pl.col("turn") > 0)
    assert (later["in_tok"] > later["held"]).all()
    assert (later["cached_tok"] == later["held"]).all()
    assert (rows.filter(pl.col("turn") == 0)["cached_tok"] == 0).all()
    assert (rows["in_tok"] >= 1).all()
    assert (rows["out_tok"] >= 1).all()


def test_only_a_programs_last_turn_calls_no_tool(name: str, trace: Trace) -> None:
    rows = trace.frame.with_columns(last=pl.col("turn") == pl.col("turn").max().over("program_id"))
    assert (rows["last"] == (rows["finish"] == "text")).all()
    assert (rows["last"] == rows["tool"].is_null()).all()
    assert set(rows["tool"].drop_nulls()) == {KINDS[name].tool}
    assert ((rows["turn"] == 0) == (rows["input_kind"] == "user")).all()
    assert ((rows["turn"] == 0) == rows["gap_before_s"].is_null()).all()


def test_the_same_seed_and_fewer_programs_are_the_first_ones() -> None:
    many, few = synthesize("bfcl", 50, seed=1), synthesize("bfcl", 20, seed=1)
    assert few.frame.equals(many.frame.head(few.num_requests))
    assert not few.frame.equals(synthesize("bfcl", 20, seed=2).frame.head(few.num_requests))


@pytest.mark.parametrize("eta", [-0.1, 0.0, 1.0])
def test_turns_can_tell_less_or_more_of_the_rest(eta: float) -> None:
    trace = synthesize("swe-bench", 5_000, eta=eta)
    made = figures(trace)
    assert made.eta == pytest.approx(eta, abs=0.06)
    assert made.turns.mean == pytest.approx(10.9, rel=0.05)
    assert made.tokens.mean == pytest.approx(70_126, rel=0.03)
    assert f"eta {eta:.2f}" in trace.info.notes[1]
    told = report(made, wanted(KINDS["swe-bench"], eta))
    assert told["turns"]["wanted_sd"] == pytest.approx(made.turns.sd, rel=0.1)


def test_gaps_can_have_another_tail() -> None:
    light, heavy = (figures(synthesize("swe-bench", 2_000, gap_sd_s=sd)).gap_s for sd in (0.2, 5.0))
    assert light.mean == pytest.approx(0.925, rel=0.05)
    assert heavy.mean == pytest.approx(0.925, rel=0.15)
    assert heavy.sd > 10 * light.sd


def test_a_program_of_one_turn_holds_all_its_tokens() -> None:
    frame = synthesize("bfcl", 3_000, eta=0.0).frame
    alone = frame.filter(pl.len().over("program_id") == 1)
    assert alone.height > 100
    tokens = alone["in_tok"] + alone["out_tok"]
    assert tokens.mean() == pytest.approx(93_256, rel=0.15)


def test_files_and_plans_take_them(tmp_path: Path) -> None:
    trace = synthesize("bfcl", 5)
    save(trace, tmp_path / "x.parquet")
    again = load(tmp_path / "x.parquet")
    assert again.frame.equals(trace.frame)
    plan = build_plan(again, PlanOptions(arrivals="rate", rate=1.0))
    assert plan.num_requests == trace.num_requests
    assert (plan.frame.filter(pl.col("turn") > 0)["shared_tok"] > 0).all()


@pytest.mark.parametrize(
    ("kind", "programs", "words"),
    [("x", 1, "'x' is no kind"), ("bfcl", 0, "at least one program"), ("bfcl", 10**9, "too many")],
)
def test_what_cannot_be_made(kind: str, programs: int, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        synthesize(kind, programs)
