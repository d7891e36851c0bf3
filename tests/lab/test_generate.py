from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.lab.distance import ks
from braid.lab.fit.profile import Profile, ProfileError, load_profile, save_profile
from braid.lab.fit.programs import turn_counts, turn_gaps
from braid.lab.fit.trace import fit_trace
from braid.lab.generate import Plan, generate, generate_trace, scaling, write
from braid.lab.table import SCHEMA, Trace, TraceError, TraceInfo, conform, load


@pytest.fixture(scope="module")
def singles() -> Trace:
    rng = np.random.default_rng(0)
    num = 3000
    inputs = rng.integers(10, 4000, num)
    failed = rng.random(num) < 0.05
    frame = pl.DataFrame(
        {
            "t_s": np.cumsum(rng.standard_exponential(num) / 2),
            "model": np.where(rng.random(num) < 0.3, "large", "small"),
            "in_tok": inputs,
            "out_tok": np.where(failed, 0, inputs // 10 + rng.integers(1, 20, num)),
            "status": np.where(failed, "failed", "ok"),
        }
    )
    return Trace(conform(frame), TraceInfo(source="made for a test"))


@pytest.fixture(scope="module")
def programs() -> Trace:
    rng = np.random.default_rng(1)
    counts = rng.geometric(0.25, 800)
    program = np.repeat(np.arange(800), counts)
    turn = np.concatenate([np.arange(n) for n in counts])
    starts = np.cumsum(rng.standard_exponential(800) * 3)
    gaps = np.where(turn > 0, rng.lognormal(2.0, 1.0, program.size), 0.0)
    e2e = rng.uniform(0.5, 2.0, program.size)
    frame = pl.DataFrame({"program": program, "turn": turn, "gap": gaps, "e2e_s": e2e}).with_columns(
        (pl.col("gap") + pl.col("e2e_s").shift(1).over("program").fill_null(0.0))
        .cum_sum()
        .over("program")
        .alias("at")
    )
    frame = frame.with_columns(
        (pl.Series(starts[program]) + pl.col("at")).alias("t_s"),
        pl.format("p{}", "program").alias("program_id"),
        pl.when(pl.col("turn") > 0).then("gap").alias("gap_before_s"),
        (500 + 300 * pl.col("turn")).alias("in_tok"),
        pl.lit(40).alias("out_tok"),
        pl.lit("ok").alias("status"),
    )
    return Trace(conform(frame.drop("program", "gap", "at")), TraceInfo(source="made for a test"))


@pytest.fixture(scope="module")
def profile(singles: Trace) -> Profile:
    return fit_trace(singles, candidates=("poisson", "gamma"))


@pytest.fixture(scope="module")
def program_profile(programs: Trace) -> Profile:
    return fit_trace(programs, candidates=("poisson",), laws=False)


def test_a_profile_survives_its_file(profile: Profile, tmp_path: Path) -> None:
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile


@pytest.mark.parametrize("text", ["", "[]", '{"version": 99}', '{"version": 1}', "{"])
def test_other_files_are_no_profiles(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"p\.json"):
        load_profile(path)
    with pytest.raises(ProfileError, match="cannot read"):
        load_profile(tmp_path / "none.json")


def test_the_same_seed_gives_the_same_requests(profile: Profile) -> None:
    first, again, other = (generate_trace(profile, Plan(seed=s, num_requests=500)) for s in (1, 1, 2))
    assert first.frame.equals(again.frame)
    assert not first.frame.equals(other.frame)
    assert list(first.frame.columns) == list(SCHEMA)


def test_lengths_mix_and_failures_are_those_of_the_data(profile: Profile, singles: Trace) -> None:
    made = generate_trace(profile, Plan(num_requests=20_000)).frame
    real = singles.frame
    assert made.height == 20_000
    assert (made["model"] == "large").mean() == pytest.approx((real["model"] == "large").mean(), abs=0.02)
    assert (made["status"] == "failed").mean() == pytest.approx((real["status"] == "failed").mean(), abs=0.01)
    assert made.filter(pl.col("status") == "failed")["out_tok"].unique().to_list() == [0]
    assert (made.filter(pl.col("status") == "ok")["out_tok"] > 0).all()
    assert ks(made["in_tok"].to_numpy(), real["in_tok"].to_numpy()) < 0.03
    answered = [frame.filter(pl.col("out_tok") > 0) for frame in (made, real)]
    slopes = [np.polyfit(f["in_tok"].to_numpy(), f["out_tok"].to_numpy(), 1)[0] for f in answered]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.1)


def test_without_failures_every_request_is_answered(profile: Profile) -> None:
    made = generate_trace(profile, Plan(num_requests=3000, keep_failures=False)).frame
    assert made["status"].cast(pl.String).unique().to_list() == ["ok"]


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.5])
def test_a_rate_is_reached_and_gaps_inside_programs_are_not_squeezed(
    factor: float, program_profile: Profile, programs: Trace
) -> None:
    assert program_profile.rate is not None
    rate = program_profile.rate * factor
    made = generate_trace(program_profile, Plan(span_s=4000.0, rate=rate, seed=5)).frame
    assert made.height / 4000.0 == pytest.approx(rate, rel=0.15)
    assert ks(turn_gaps(made), turn_gaps(programs.frame)) < 0.05
    assert ks(turn_counts(made), turn_counts(programs.frame)) < 0.06
    assert made["t_s"].is_sorted()


def test_turns_follow_gap_and_call(program_profile: Profile) -> None:
    frame = generate_trace(program_profile, Plan(span_s=1000.0)).frame.sort("program_id", "turn")
    earlier = (pl.col("t_s") + pl.col("e2e_s")).shift(1).over("program_id")
    steps = frame.with_columns((pl.col("t_s") - earlier).alias("pause")).filter(pl.col("turn") > 0)
    assert np.allclose(steps["pause"].to_numpy(), steps["gap_before_s"].to_numpy(), atol=1e-6)
    grown = frame.with_columns(pl.col("in_tok").diff().over("program_id")).filter(pl.col("turn") > 0)
    # A program that reaches its own longest prompt early stays there; all others grow as in the data.
    assert set(grown["in_tok"]) <= {0, 300}
    assert (grown["in_tok"] == 300).mean() > 0.8


def test_chunks_are_in_order_and_the_file_reads_as_a_trace(
    program_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.lab.generate.CHUNK_REQUESTS", 300)
    plan = Plan(span_s=2000.0, seed=2)
    chunks = list(generate(program_profile, plan))
    assert len(chunks) > 3
    whole = pl.concat(chunks)
    assert whole["t_s"].is_sorted()
    rows = write(program_profile, plan, tmp_path / "t.parquet")
    kept = load(tmp_path / "t.parquet")
    assert rows == kept.num_requests == whole.height
    assert kept.frame.equals(whole)
    assert "seed 2" in kept.info.notes[0]


def test_a_source_without_times_needs_a_rate(programs: Trace) -> None:
    frame = programs.frame.with_columns(pl.lit(None, pl.Float64).alias("t_s"))
    profile = fit_trace(Trace(frame, programs.info), laws=False)
    assert profile.rate is None
    with pytest.raises(ProfileError, match="give a rate"):
        generate_trace(profile, Plan(span_s=10.0))
    made = generate_trace(profile, Plan(span_s=2000.0, rate=5.0))
    assert made.num_requests / 2000 == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize(
    "plan", [Plan(), Plan(span_s=0.0), Plan(span_s=1.0, rate=-1.0), Plan(num_requests=-3)]
)
def test_senseless_plans_are_named(plan: Plan, profile: Profile) -> None:
    with pytest.raises(ProfileError):
        generate_trace(profile, plan)


def test_empty_traces_and_unknown_models_are_named(singles: Trace) -> None:
    with pytest.raises(TraceError, match="no rows"):
        fit_trace(Trace(singles.frame.head(0), singles.info))
    with pytest.raises(ValueError, match="pareto"):
        fit_trace(singles, candidates=("pareto",))


def test_scaling() -> None:
    assert scaling(5.0, 10.0) == (1, 0.5)
    assert scaling(10.0, 10.0) == (1, 1.0)
    assert scaling(25.0, 10.0) == (3, pytest.approx(25 / 30))


def test_sub_programs_begin_inside_their_parents() -> None:
    frame = pl.DataFrame(
        {
            "t_s": [100.0 * p + at for p in range(60) for at in (0, 20, 40, 10, 15)],
            "program_id": [name for p in range(60) for name in (*(f"r{p}",) * 3, *(f"c{p}",) * 2)],
            "parent_id": [name for p in range(60) for name in (None, None, None, f"r{p}", f"r{p}")],
            "turn": [0, 1, 2, 0, 1] * 60,
            "model": [*("large",) * 3, *("small",) * 2] * 60,
            "in_tok": [1000, 1100, 1200, 50, 60] * 60,
            "out_tok": [10] * 300,
            "e2e_s": [5.0] * 300,
        }
    )
    profile = fit_trace(Trace(conform(frame), TraceInfo()), candidates=("poisson",), laws=False)
    assert profile.programs is not None
    assert profile.programs.below is not None
    assert profile.programs.below.mean == 1.0
    assert profile.programs.requests_per_start == 5.0
    made = generate_trace(profile, Plan(span_s=20_000.0, rate=0.1)).frame
    assert made.height / 20_000 == pytest.approx(0.1, rel=0.2)
    parents, children = (made.filter(pl.col("parent_id").is_null() == alone) for alone in (True, False))
    assert parents["model"].unique().to_list() == ["large"]
    assert children["model"].unique().to_list() == ["small"]
    begins = children.filter(turn=0).join(
        parents.filter(turn=0), left_on="parent_id", right_on="program_id", suffix="_parent"
    )
    # A child begins after its parent's first turn (5 s), as in the data, and while the parent goes on.
    assert begins.height == children["program_id"].n_unique()
    assert np.allclose(begins["t_s"] - begins["t_s_parent"], 5.0)
