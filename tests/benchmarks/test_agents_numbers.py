"""How runs become numbers and a figure, and how both orders of policies are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agents_client import Played, Turn, counters_of
from agents_figure import draw
from agents_numbers import agreement, pressure, run_of, summary, told_of
from agents_programs import Program, Step

TURNS = [
    Turn(0, 0, 1.0, 2.0, 3.0, 100, 0, 10, tool_s=1.0),
    Turn(1, 0, 2.0, 5.0, 6.0, 50, 16, 10),
    Turn(0, 1, 4.0, 4.5, 9.0, 130, 96, 5),
]
COUNTERS = {
    "braid_requests_finished_total{finished_reason=stop}": 2.0,
    "braid_requests_finished_total{finished_reason=length}": 1.0,
    "braid_prompt_tokens_total": 280.0,
    "braid_prompt_tokens_cached_total": 112.0,
    "braid_generation_tokens_total": 25.0,
    "braid_prompt_tokens_by_origin_total{source=device_hit}": 112.0,
    "braid_prompt_tokens_by_origin_total{source=recompute}": 8.0,
    "braid_prompt_tokens_by_origin_total{source=compulsory}": 160.0,
    "braid_programs_kept_total{outcome=handed over}": 1.0,
    "braid_preemptions_total": 3.0,
    "braid_steps_total": 40.0,
}
PLAYED = Played(TURNS, COUNTERS, 20, 16)


def test_a_run_in_numbers() -> None:
    run = run_of(PLAYED, "lru", 2)
    assert run.jct_s == (8.0, 4.0)
    assert (run.ttft_first_s, run.ttft_later_s) == ((1.0, 3.0), (0.5,))
    assert run.tokens == {
        "device_hit": 112,
        "host_reload": 0,
        "disk_reload": 0,
        "recompute": 8,
        "compulsory": 160,
    }
    assert (run.kept, run.num_preemptions, run.num_steps, run.seconds) == ({"handed over": 1}, 3, 40, 8.0)


@pytest.mark.parametrize("name", list(COUNTERS)[:6])
def test_a_server_that_counted_otherwise_is_caught(name: str) -> None:
    wrong = COUNTERS | {name: COUNTERS[name] + 1}
    with pytest.raises(RuntimeError, match=r"server finished|rose by"):
        run_of(PLAYED._replace(counters=wrong), "lru", 0)


def test_pressure_is_what_all_hold_at_their_ends() -> None:
    programs = [Program("a", 0.0, (Step(1, 1, 0.0),) * 2), Program("b", 0.0, (Step(1, 1, 0.0),))]
    assert pressure(programs, told_of(PLAYED), 100) == pytest.approx((135 + 60) / 100)


def test_a_summary_has_medians_and_ratios_round_by_round() -> None:
    base = [run_of(PLAYED, "lru", number) for number in range(3)]
    runs = [
        replace(run, policy="braid", jct_s=(jct,)) for run, jct in zip(base, (2.0, 3.0, 6.0), strict=True)
    ]
    found = summary(runs, base)
    assert found["jct_s"]["mean"] == 3.0
    assert found["versus"]["policy"] == "lru"
    assert found["versus"]["jct_ratio"] == pytest.approx((3 + 2 + 1) / 3)
    low, high = found["versus"]["jct_interval"]
    assert low < 2 < high
    assert found["versus"]["ttft_ratio"] == 1.0
    assert [each["round"] for each in found["rounds"]] == [0, 1, 2]


def test_orders_are_compared_pair_by_pair() -> None:
    found = agreement({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0})
    assert (found["real"], found["simulated"]) == (["a", "b", "c"], ["a", "c", "b"])
    assert found["tau"] == pytest.approx(1 / 3)
    assert [swap["pair"] for swap in found["swapped"]] == [("b", "c")]
    assert found["jct_error"] == pytest.approx({"a": 0.0, "b": 0.5, "c": -1 / 3})


def test_counters_lose_the_labels_that_all_of_them_have() -> None:
    text = (
        "# HELP braid_steps_total Steps\n"
        'braid_steps_total{engine="0",model_name="m"} 3.0\n'
        'braid_programs_kept_total{engine="0",model_name="m",outcome="handed over"} 1.2e+03\n'
        'vllm:steps_total{engine="0"} 9.0\n'
    )
    assert counters_of(text) == {
        "braid_steps_total": 3.0,
        "braid_programs_kept_total{outcome=handed over}": 1200.0,
    }


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_the_figure_is_drawn_of_what_is_written(tmp_path: Path, num_rounds: int) -> None:
    runs = [run_of(PLAYED, "lru", number) for number in range(num_rounds)]
    samples = [{"ttft_first_s": run.ttft_first_s, "ttft_later_s": run.ttft_later_s} for run in runs]
    policies = {name: summary(runs, runs) | {"samples": samples} for name in ("lru", "one-more")}
    draw({"policies": policies, "simulated": {"lru": summary(runs[:1], runs[:1])}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
