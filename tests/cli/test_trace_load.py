"""``braid trace load`` and ``braid trace audit``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from braid.cli.app import main
from braid.lab.table import load

REAL = Path(__file__).parents[1] / "data" / "burstgpt_1_first30.csv"


def test_load_writes_parquet_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, result = tmp_path / "x.parquet", tmp_path / "x.json"
    assert main(["trace", "load", str(REAL), "--out", str(out), "--json", str(result)]) == 0
    printed = capsys.readouterr().out
    for words in ("30 requests", "38.1 min", "CC-BY-4.0", "arXiv 2401.17644", "unsendable"):
        assert words in printed
    report = json.loads(result.read_text())
    assert (report["rows"], report["programs"], report["span_s"]) == (30, 0, 2288.0)
    assert {"name": "unsendable", "level": "warning", "count": 1, "rows": [21]}.items() <= next(
        finding.items() for finding in report["audit"] if finding["name"] == "unsendable"
    )
    assert load(out).num_requests == 30
    assert main(["trace", "audit", str(out)]) == 0
    assert "unsendable" in capsys.readouterr().out


def test_audit_ends_with_2_where_rows_were_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(REAL.read_text() + "x,ChatGPT,1,2,3,API log\n")
    assert main(["trace", "audit", str(path)]) == 2
    assert "bad_rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace", "load", "absent.csv"], "absent.csv"),
        (["trace", "load", str(REAL), "--format", "azure"], "is not azure, which needs TIMESTAMP"),
        (["trace", "load", str(REAL), "--format", "x"], "'x' is no format; one of: auto"),
        (["trace", "load", str(REAL), "--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
        (["trace", "load", str(REAL), "--out", "/nowhere/x.parquet"], "/nowhere/x.parquet"),
    ],
)
def test_what_the_user_can_change_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("braid: error: ")
    assert error.count("\n") == 1


def test_help_needs_no_table_library() -> None:
    code = "import sys; from braid.cli import main; main(['trace', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in ("'polars'", "'scipy'", "'matplotlib'") if name in done.stdout]


@pytest.mark.parametrize(
    ("words", "absent", "extra"),
    [
        (["trace", "load", "x.csv"], "polars", "lab"),
        (["trace", "versus", "a", "b"], "polars", "lab"),
        (["trace", "describe", "x.csv"], "scipy", "lab"),
        (["pull", "org/name"], "huggingface_hub", "engine"),
    ],
)
def test_a_missing_extra_is_named(words: list[str], absent: str, extra: str) -> None:
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from braid.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, absent, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"braid: error: this command needs {absent}")
    assert done.stderr.endswith(f"pip install 'braid[{extra}]'\n")
    assert done.stderr.count("\n") == 1
