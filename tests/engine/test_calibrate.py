"""Only what does not depend on the machine's speed: which steps are run, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from braid.cli.app import main
from braid.core.config import EngineConfig
from braid.engine.build import Built, build_engine
from braid.engine.calibrate import _below, _Rig, _Shape, calibrate
from braid.policy.calibration import cost_from_data


@pytest.fixture
def built(tiny_llama: Path) -> Iterator[Built]:
    config = EngineConfig(
        model=str(tiny_llama),
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=128,
        kv_cache_memory=1 << 20,
    )
    built = build_engine(config, eos_token_ids=frozenset())
    yield built
    built.core.close()


@pytest.mark.parametrize(
    ("limit", "values"),
    [(100, [16, 64, 100]), (64, [16, 64]), (3, [3]), (256, [16, 64, 256]), (999, [16, 64, 256])],
)
def test_values_end_at_the_limit(limit: int, values: list[int]) -> None:
    assert _below((16, 64, 256), limit) == values


def test_a_sweep_covers_what_the_engine_may_run(built: Built) -> None:
    heard: list[str] = []
    found = calibrate(
        built.core.runner,
        built.limits,
        built.core.info.vocab_size,
        "tiny",
        repeats=1,
        tell=lambda what, done, total: heard.append(what),
    )
    cost = found.cost
    assert cost.decode.rows == (1, 2, 4, 8)
    assert (cost.decode.columns, cost.prefill.columns) == ((16, 255), (0, 127))
    assert cost.prefill.rows == (64, 128)
    assert min(cost.dense.seconds) > 0
    assert set(found.errors) == {"decode", "prefill", "mixed"}
    assert found.manifest["num_blocks"] == built.limits.num_blocks
    assert list(dict.fromkeys(heard)) == ["warming up", "measuring steps", "checking"]


@pytest.mark.parametrize(
    "shape",
    [_Shape(9, 16, ()), _Shape(1, 256, ()), _Shape(0, 0, ((129, 0),)), _Shape(0, 0, ((64, 200),))],
    ids=["too many sequences", "beyond the context", "over the budget", "a chunk beyond the context"],
)
def test_steps_that_the_engine_never_runs_are_not_measured(built: Built, shape: _Shape) -> None:
    assert not _Rig(built.core.runner, built.limits, 259).fits(shape)


def test_the_command_writes_tables(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "tables.json"
    limits = ["--max-model-len", "256", "--max-num-seqs", "4", "--max-num-batched-tokens", "128"]
    assert main(["calibrate", str(tiny_llama), "--out", str(out), "--repeats", "1", *limits]) == 0
    data = json.loads(out.read_text())
    assert cost_from_data(data["cost"]).profile.startswith(str(tiny_llama))
    assert data["scheduler"]["max_num_seqs"] == 4
    assert "kept as" in capsys.readouterr().out


def test_no_repeats_are_refused(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(tiny_llama), "--repeats", "0"]) == 2
    assert "repeats must be at least 1, got 0" in capsys.readouterr().err
