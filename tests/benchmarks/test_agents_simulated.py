"""How simulated studies are kept, summed up, judged and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agents_simulated import Task, chosen, kept, result_of, run_all, tasks_of, work
from agents_simulated_show import draw, show_goals, show_study
from agents_simulated_sums import goals_of, summary_of
from agents_studies import STUDIES, Load, Source, Study, plain

TINY = Study(
    name="tiny",
    words="a few short programs",
    load=Load(source=Source(trace="swe-bench"), programs=3, rate=1.0),
    variants=plain("lru", "braid"),
)


def numbers(jct: float, first: float, again: float = 0.5, turns: int = 10) -> dict[str, Any]:
    spread = {"mean": first / 2, "p50": first / 3, "p99": first, "max": first}
    return {
        "jct_s": {"mean": jct, "p50": jct, "p95": 2 * jct, "p99": 3 * jct, "max": 4 * jct},
        "ttft_first_s": spread,
        "ttft_later_s": spread,
        "tokens": {"device_hit": 5, "host_reload": 1, "disk_reload": 0, "recompute": 2, "compulsory": 4},
        "recompute_per_compulsory": again,
        "hit_rate": 0.4,
        "preemptions": 0,
        "programs": 3,
        "turns": turns,
        "refused": 0,
    }


def study(**variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Of lists of one run per seed."""
    runs = {name.replace("_", "-"): dict(enumerate(each)) for name, each in variants.items()}
    load = {"programs": 3, "rate": 1.0, "host_kv_tokens": 0}
    return {"words": "made up", "config": load, "notes": [], **summary_of(runs)}


def test_ratios_are_taken_seed_by_seed() -> None:
    made = study(lru=[numbers(10, 1), numbers(30, 2)], braid=[numbers(5, 1), numbers(10, 3)])
    times = made["policies"]["braid"]["times"]["lru"]
    assert times["gain"]["value"] == pytest.approx((2 + 3) / 2)
    assert times["jct_mean"]["value"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert times["first_max"]["value"] == pytest.approx((1 + 1.5) / 2)
    low, high = times["gain"]["interval"]
    assert low < 2.5 < high
    assert made["policies"]["braid"]["mean"]["jct_s"]["mean"] == 7.5
    assert made["policies"]["lru"]["seeds"]["jct_mean"] == [10, 30]


def test_a_seed_that_one_variant_lacks_is_not_compared() -> None:
    made = study(lru=[numbers(10, 1), numbers(30, 2)], braid=[numbers(5, 1)])
    assert made["policies"]["braid"]["times"]["lru"]["gain"] == {"value": 2.0, "interval": (2.0, 2.0)}
    assert not made["same_work"]


def test_policies_that_played_other_turns_are_told() -> None:
    same = study(lru=[numbers(10, 1)], braid=[numbers(5, 1)])
    other = study(lru=[numbers(10, 1)], braid=[numbers(5, 1, turns=9)])
    assert (same["same_work"], other["same_work"]) == (True, False)


def test_goals_are_judged_by_what_they_say() -> None:
    runs = {"lru": [numbers(10, 1)], "continuum": [numbers(4, 9)], "braid": [numbers(5, 1.5, again=1.3)]}
    studies = {"weka-host": study(**runs), "light-weka": study(**runs), "swe-bench-0.1": study(**runs)}
    met = {(goal["study"], goal["goal"]): goal["met"] for goal in goals_of(studies)}
    assert met == {
        ("weka-host", "mean JCT of lru / braid >= 2"): True,
        ("weka-host", "mean JCT of continuum / braid >= 1"): False,
        ("weka-host", "max first TTFT of braid / lru <= 2"): True,
        ("weka-host", "recompute / compulsory of braid <= 1.2"): False,
        ("light-weka", "jct mean of braid / lru <= 1.02"): True,
        ("light-weka", "first mean of braid / lru <= 1.02"): False,
        ("light-weka", "later mean of braid / lru <= 1.02"): False,
        ("swe-bench-0.1", "mean JCT of lru / continuum in 1.12 .. 3.66"): True,
    }


def test_names_of_studies_and_their_variants_are_unique_and_every_policy_is_known() -> None:
    assert len({each.name for each in STUDIES}) == len(STUDIES)
    for each in STUDIES:
        assert len({variant.name for variant in each.variants}) == len(each.variants)
    with pytest.raises(SystemExit, match="no study is named nothing"):
        chosen("weka,nothing")
    assert [each.name for each in chosen("weka")] == ["weka"]


def task_of(tmp_path: Path, wanted: Study = TINY) -> Task:
    return next(tasks_of([wanted], 1, tmp_path, tmp_path))


def test_a_run_is_kept_until_something_changes(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    assert kept(task) is None
    made = work(task)
    assert kept(task) == json.loads(json.dumps(made))
    assert made["numbers"]["programs"] == 3
    assert kept(task._replace(code="other")) is None
    assert kept(task_of(tmp_path, replace(TINY, load=replace(TINY.load, rate=2.0)))) is None
    task.path.write_text(task.path.read_text()[:100])
    assert kept(task) is None


def test_kept_runs_are_not_done_again(tmp_path: Path) -> None:
    tasks = list(tasks_of([TINY], 1, tmp_path, tmp_path))
    for task in tasks:
        work(task)
    written = [task.path.stat().st_mtime_ns for task in tasks]
    ended, failed = run_all(tasks, jobs=1)
    assert not failed
    assert [task.path.stat().st_mtime_ns for task in tasks] == written
    result = result_of(tasks, ended, failed)
    assert result["studies"]["tiny"]["same_work"]
    assert set(result["studies"]["tiny"]["policies"]) == {"lru", "braid"}


def test_tables_say_what_was_missed_and_the_figure_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"lru": [numbers(10, 1), numbers(9, 1)], "braid": [numbers(5, 3), numbers(4, 3)]}
    names = ("weka", "lmcache-host", "eta-0", "eta-1", "ablation-weka", "swe-bench-0.1")
    studies = {name: study(**runs) for name in names}
    result = {
        "studies": studies,
        "goals": goals_of(studies),
        "simulated": "a guess",
        "cpu_s": 60.0,
        "failed": [],
    }
    show_study("weka", studies["weka"])
    show_goals(result)
    said = capsys.readouterr().out
    assert "2.12 ±" in said
    assert "NO" in said
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
