from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.cli import main
from braid.lab.compare import Part, compare, limits
from braid.lab.fidelity import both_ways, prove
from braid.lab.fit.profile import load_profile
from braid.lab.fit.trace import fit_trace
from braid.lab.scale import superpose
from braid.lab.split import inside, spans_of, split_blocks, split_programs, split_time
from braid.lab.table import Trace, TraceError, TraceInfo, conform, load, save


def lone(num: int = 2000) -> Trace:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1.0, num))
    inputs = rng.integers(1, 1000, num)
    frame = pl.DataFrame({"t_s": times, "in_tok": inputs, "out_tok": inputs // 4 + 1})
    return Trace(conform(frame), TraceInfo(source="made for a test"))


@pytest.fixture
def programs() -> Trace:
    """Programs of four turns, 30 s apart; every tenth is a child of the one before it."""
    frame = pl.DataFrame(
        {"p": np.repeat(np.arange(200), 4), "turn": np.tile(np.arange(4), 200)}
    ).with_columns(
        (pl.col("p") * 5.0 + pl.col("turn") * 30.0).alias("t_s"),
        pl.format("p{}", "p").alias("program_id"),
        pl.when(pl.col("p") % 10 == 9).then(pl.format("p{}", pl.col("p") - 1)).alias("parent_id"),
        pl.lit(100).alias("in_tok"),
        pl.lit(10).alias("out_tok"),
    )
    return Trace(conform(frame.drop("p")), TraceInfo(source="made for a test"))


def test_blocks_take_turns_and_leave_nothing_out() -> None:
    trace = lone()
    train, test = split_blocks(trace, 100.0)
    assert train.num_requests + test.num_requests == trace.num_requests
    assert train.info.spans[0] == pytest.approx(
        (float(trace.frame["t_s"][0]), 100 + float(trace.frame["t_s"][0]))
    )
    assert not set(train.frame["t_s"]) & set(test.frame["t_s"])
    assert len(split_blocks(trace)[0].info.spans) == 10


def test_programs_stay_whole_where_they_begin(programs: Trace) -> None:
    for parts in (
        split_time(programs, 500.0),
        split_blocks(programs, 60.0),
        split_programs(programs, 0.4, 3),
    ):
        names = [set(part.frame["program_id"]) for part in parts]
        assert not names[0] & names[1]
        assert sum(part.num_requests for part in parts) == programs.num_requests
        for p in range(8, 200, 10):
            assert (f"p{p}" in names[0]) == (f"p{p + 1}" in names[0])


def test_a_part_keeps_what_it_covers(tmp_path: Path) -> None:
    train, _ = split_time(lone(), 700.0)
    save(train, tmp_path / "a.parquet")
    kept = load(tmp_path / "a.parquet")
    assert kept.info.spans == train.info.spans == ((float(train.frame["t_s"][0]), 700.0),)
    assert spans_of(kept) == kept.info.spans
    again = split_blocks(kept, 100.0)[1]
    assert all(stop <= 700.0 for _, stop in again.info.spans)


def test_a_fit_of_a_part_takes_no_hole_for_a_silence() -> None:
    trace = lone(4000)
    train, test = split_blocks(trace, 100.0)
    arrivals = fit_trace(train, candidates=("poisson",), laws=False).requests.arrivals  # type: ignore[union-attr]
    assert arrivals is not None
    assert arrivals.rate == pytest.approx(1.0, rel=0.1)
    rows = {row.name: row for row in compare(Part(trace=test), Part(trace=lone(4000)), Part(trace=train))}
    assert rows["IDC ratio 10 s"].value == pytest.approx(1.0, abs=0.4)


def test_parts_with_holes_are_not_superposed() -> None:
    with pytest.raises(TraceError, match="cut out of its middle"):
        superpose(split_blocks(lone(), 100.0)[0], 2)


def test_senseless_splits_are_named(programs: Trace) -> None:
    timeless = Trace(programs.frame.with_columns(pl.lit(None, pl.Float64).alias("t_s")), programs.info)
    with pytest.raises(TraceError, match="cannot be split at -5 s"):
        split_time(programs, -5.0)
    with pytest.raises(TraceError, match="shorter than the trace"):
        split_blocks(programs, 1e9)
    with pytest.raises(TraceError, match="between 0 and 1"):
        split_programs(programs, 1.0)
    with pytest.raises(TraceError, match="split by programs"):
        split_blocks(timeless, 60.0)
    assert inside(programs.frame, ((0.0, 12.0),))["program_id"].n_unique() == 3


def test_a_ratio_may_lie_between_the_real_parts() -> None:
    assert limits(None, 0.25) == (0.75, 1.25)
    assert limits(0.5, 0.2) == pytest.approx((0.4, 1.2))
    assert limits(2.0, 0.25) == pytest.approx((0.75, 2.5))


def test_both_ways_cancel_the_luck_of_a_split() -> None:
    a, b = split_blocks(lone(2000), 100.0)
    proofs = []
    for train, test in ((a, b), (b, a)):
        profile = fit_trace(train, candidates=("poisson",), laws=False)
        proofs.append(prove(profile, Part(trace=test), Part(trace=train), runs=3))
    merged = {row.name: row for row in both_ways(proofs[0], proofs[1])["chosen"]}
    one, other = ({row.name: row for row in proof["chosen"]} for proof in proofs)
    name = "IDC ratio 10 s"
    assert merged[name].value == pytest.approx((one[name].value * other[name].value) ** 0.5)
    assert merged[name].limits == (0.75, 1.25)
    name = "KS input tokens"
    assert merged[name].value in (one[name].value, other[name].value)


def test_from_a_csv_to_a_proof_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(lone(4000), tmp_path / "t.parquet")
    train, test, profile = (str(tmp_path / name) for name in ("a.parquet", "b.parquet", "p.json"))
    assert main(["trace", "split", str(tmp_path / "t.parquet"), "--out-train", train, "--out-test", test,
                 "--blocks", "50", "--json", str(tmp_path / "s.json")]) == 0  # fmt: skip
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert rows["train"] + rows["test"] == 4000
    assert main(["trace", "fit", train, "--out", profile, "--held-out", test, "--models", "poisson"]) == 0
    shown = capsys.readouterr().out
    assert "generated to held out" in shown
    kept = load_profile(Path(profile)).held_out
    assert set(kept) == {"chosen", "poisson", "gamma"}
    assert all(row.passed for row in kept["chosen"] if row.judged)
