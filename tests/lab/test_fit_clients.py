"""ServeGen folders as profiles. All numbers are synthetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.cli import main
from braid.lab.crowd import first_gap
from braid.lab.fit.laws import UnitLaw, draw_unit
from braid.lab.fit.profile import ProfileError, load_profile, save_profile
from braid.lab.generate import Plan, generate, generate_trace
from braid.lab.table import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Client 0: bursty, then idle, then fast with a law far off its rate; 7 has no lengths, 9 no rates."""
    folder = tmp_path / "clients"
    folder.mkdir()
    rows = ["0,2,2,Gamma,0.25,2", "600,0,0,,,", "1200,6,0.5,Weibull,2.1,40"]
    (folder / "chunk-0-trace.csv").write_text("\r\n".join(rows) + "\r\n", newline="")
    (folder / "chunk-7-trace.csv").write_text("0,1,1,,,\r\n600,1,1,,,\r\n", newline="")
    fields = {"input_tokens": "{20: 1, 10: 3}", "output_tokens": "{5: 1}", "reason_ratio": "{}"}
    later = {"input_tokens": "{900: 1}", "output_tokens": "{0: 1}", "reason_ratio": "{}"}
    (folder / "chunk-0-dataset.json").write_text(json.dumps({"0": fields, "1200": later}))
    (folder / "chunk-9-dataset.json").write_text(json.dumps({"0": fields}))
    return folder


def test_clients_keep_their_rates_windows_and_lengths(folder: Path) -> None:
    profile = load_profile(folder)
    assert profile.clients is not None
    assert (profile.clients.span_s, profile.clients.window_s) == (1800.0, 600.0)
    assert profile.rate == pytest.approx((2 + 6 + 1 + 1) * 600 / 1800)
    frame = generate_trace(profile, Plan(span_s=1800.0 * 20, seed=1)).frame
    assert frame["t_s"].is_sorted()
    third = frame.with_columns((pl.col("t_s") % 1800 // 600).alias("third")).sort("third")
    counts = third.group_by("third", maintain_order=True).len()["len"].to_numpy() / (20 * 600)
    assert counts == pytest.approx([3.0, 1.0, 6.0], rel=0.12)
    assert set(third.filter(third=2)["in_tok"]) == {900}
    first = third.filter(third=0)["in_tok"]
    # Two thirds are client 0's (a quarter of them 20), one third the other's, which takes all lengths of all clients.
    assert (first == 20).mean() == pytest.approx(2 / 3 / 4 + 1 / 3 / 6, abs=0.03)
    assert frame["out_tok"].min() == 1


def test_a_client_is_as_bursty_as_its_law(folder: Path) -> None:
    (folder / "chunk-7-trace.csv").unlink()
    frame = generate_trace(load_profile(folder), Plan(span_s=600.0 * 300, seed=2)).frame
    times = frame.filter(pl.col("t_s") % 1800 < 600)["t_s"].to_numpy()
    gaps = np.diff(times)
    gaps = gaps[gaps < 600]
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.15)


def test_missing_partners_are_said_and_the_profile_keeps(folder: Path, tmp_path: Path) -> None:
    profile = load_profile(folder)
    notes = " ".join(profile.notes)
    assert "clients without their dataset file: 7" in notes
    assert "clients without their trace file: 9" in notes
    assert "1 clients have no lengths" in notes
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile


def test_rates_are_reached_by_copies_and_thinning(folder: Path) -> None:
    profile = load_profile(folder)
    for rate in (1.0, 12.0):
        plan = Plan(span_s=1800.0 * 10, rate=rate, seed=3)
        made = generate_trace(profile, plan)
        assert made.num_requests / plan.span_s == pytest.approx(rate, rel=0.1)  # type: ignore[operator]
        assert "begins anew" in made.info.notes[-1]


def test_chunks_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(span_s=7200.0, seed=4)
    whole = generate_trace(load_profile(folder), plan).frame
    monkeypatch.setattr("braid.lab.generate.CHUNK_REQUESTS", 500)
    chunks = list(generate(load_profile(folder), plan))
    assert len(chunks) > 10
    assert pl.concat(chunks).equals(whole)


@pytest.mark.parametrize("law", [UnitLaw(family="gamma", shape=0.3), UnitLaw(family="weibull", shape=0.6)])
def test_waiting_starts_in_the_middle_of_a_gap(law: UnitLaw) -> None:
    rng = np.random.default_rng(0)
    waits = np.array([first_gap(law, rng) for _ in range(20_000)])
    gaps = draw_unit(law, 400_000, rng)
    assert waits.mean() == pytest.approx((gaps**2).mean() / 2, rel=0.06)


def test_what_it_cannot_do_is_named(folder: Path) -> None:
    with pytest.raises(ProfileError, match="no baselines"):
        generate_trace(load_profile(folder), Plan(span_s=10.0, arrivals="poisson"))
    for path in folder.glob("*-trace.csv"):
        path.write_text("0,0,0,,,\n")
    with pytest.raises(ProfileError, match="idle"):
        load_profile(folder)


def test_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile, made = str(tmp_path / "p.json"), tmp_path / "t.parquet"
    assert main(["trace", "fit", str(folder), "--out", profile]) == 0
    assert "2 clients" in capsys.readouterr().out
    for source in (profile, str(folder)):
        assert main(["trace", "generate", source, "--out", str(made), "--requests", "500"]) == 0
        assert load(made).num_requests == 500
