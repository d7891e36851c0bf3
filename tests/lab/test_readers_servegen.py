"""ServeGen profiles. All numbers are synthetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from braid.lab.readers import read_profile, read_trace
from braid.lab.readers.servegen import parse_pmf
from braid.lab.table import TraceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ["0,0.5,1.2,Gamma,0.69,2.9", "600,0,0,,,", "1200,0.085,6.7,Weibull,0.4,0.9"]
    (tmp_path / "chunk-0-trace.csv").write_text("\r\n".join(rows) + "\r\n", newline="")
    (tmp_path / "chunk-7-trace.csv").write_text("0,1,1,Gamma,1,1\r\n", newline="")
    fields = {"input_tokens": "{20: 1, 10: 3}", "output_tokens": "{}", "reason_ratio": "{0.5: 1.0}"}
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps({"0": fields}))
    return tmp_path


def test_windows_and_lengths(folder: Path) -> None:
    profile = read_profile(folder)
    assert profile.windows.height == 4
    assert profile.windows["family"].to_list() == ["Gamma", None, "Weibull", "Gamma"]
    assert profile.windows.row(2) == (0, 1200.0, 0.085, 6.7, "Weibull", 0.4, 0.9)
    assert set(profile.lengths) == {(0, 0, "input_tokens"), (0, 0, "reason_ratio")}
    pmf = profile.lengths[0, 0, "input_tokens"]
    assert pmf.values.tolist() == [10.0, 20.0]
    assert pmf.weights.tolist() == [0.75, 0.25]


def test_a_missing_partner_is_said(folder: Path) -> None:
    (finding,) = read_profile(folder).findings
    assert (finding.name, finding.count) == ("missing_partner", 1)
    assert "7" in finding.text


def test_bad_windows_are_left_out(folder: Path) -> None:
    (folder / "chunk-7-trace.csv").write_text("0,1,1,Gamma,1,1\n600,-1,1,,,\n1200,1,1,Pareto,1,1\n1800,1\n")
    profile = read_profile(folder)
    assert profile.windows.height == 4
    assert {finding.name: finding.count for finding in profile.findings}["bad_rows"] == 3


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('x')", "[1]", "{1: 'a'}", "{1: -1}", "{1: 0}", "{-5: 1}", "{", "{True: 1}", 7],
)
def test_anything_but_a_dict_of_numbers_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_pmf(text)


def test_a_profile_is_no_trace(folder: Path) -> None:
    with pytest.raises(TraceError, match="ServeGen profile"):
        read_trace(folder)
    (folder / "empty").mkdir()
    with pytest.raises(TraceError, match="no known folder"):
        read_trace(folder / "empty")
    with pytest.raises(TraceError, match="no ServeGen client"):
        read_profile(folder / "empty")
