"""How recorded programs become ones that a small machine carries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from statistics import median

import pytest
from agents_programs import (
    MIN_NEW,
    MIN_OUT,
    Scale,
    Step,
    Words,
    draw,
    growing,
    lognormal,
    paired,
    peers,
    recorded,
    scaled,
    synthetic,
)

LONG = (Step(1000, 40, 0.0), Step(100, 40, 3.0), Step(200, 40, 60.0), Step(100, 40, 1.0))


def test_a_program_ends_where_its_prompt_gets_shorter() -> None:
    rows = [(100, 10, None), (150, 20, 2.0), (120, 5, 1.0), (400, 5, 1.0)]
    assert growing(rows) == (Step(100, 10, 0.0), Step(40, 20, 2.0))


def test_missing_lengths_are_lent_and_later_turns_come_again() -> None:
    course = (Step(0, 5, 0.0), Step(0, 6, 1.0), Step(0, 7, 2.0), Step(0, 8, 3.0))
    donor = (Step(900, 1, 0.0), Step(30, 1, 9.0), Step(40, 1, 9.0))
    assert paired([course], [donor], Random(0)) == [
        (Step(900, 5, 0.0), Step(30, 6, 1.0), Step(40, 7, 2.0), Step(30, 8, 3.0))
    ]


def test_scaling_caps_answers_and_gaps_and_keeps_a_least_length() -> None:
    scale = Scale(context=0.01, output=10, gap=0.1, max_out=32, max_gap_s=2.0)
    assert scaled(LONG[:3], scale) == (
        Step(10, 32, 0.0),
        Step(MIN_NEW, 32, pytest.approx(0.3)),
        Step(MIN_NEW, 32, 2.0),
    )


def test_a_program_ends_before_it_would_be_too_long() -> None:
    kept = scaled(LONG, Scale(max_tokens=1500))
    assert kept == (Step(1000, 32, 0.0), Step(100, 32, 3.0), Step(200, 32, 10.0))
    assert scaled(LONG, Scale(max_tokens=1000)) == ()


def test_the_same_seed_draws_the_same_programs_and_none_twice_before_all_have_come() -> None:
    courses = [(Step(number, MIN_OUT, 0.0),) for number in range(8, 14)]
    drawn = draw(courses, 8, 1.0, 3)
    assert drawn == draw(courses, 8, 1.0, 3)
    assert drawn != draw(courses, 8, 1.0, 4)
    assert {program.steps for program in drawn[:6]} == set(courses)
    assert drawn[0].start_s == 0.0
    assert sorted(program.start_s for program in drawn) == [program.start_s for program in drawn]
    assert len({program.name for program in drawn}) == 8


def test_a_lognormal_has_its_median_and_its_ninetieth_percentile() -> None:
    law, rng = lognormal(0.7, 3.5), Random(0)
    values = sorted(law(rng) for _ in range(20_000))
    assert median(values) == pytest.approx(0.7, rel=0.03)
    assert values[18_000] == pytest.approx(3.5, rel=0.05)


def test_the_workload_of_peers_is_the_one_that_was_handed_down() -> None:
    programs = peers(12, 0)
    assert [len(program.steps) for program in programs] == [6] * 12
    assert {tuple(step.new for step in program.steps) for program in programs} == {(1500, *[400] * 5)}
    assert {step.out for program in programs for step in program.steps} == {48}


def test_made_up_programs_have_stated_lengths() -> None:
    courses = synthetic(50, 0, Scale())
    assert all(5 <= len(course) <= 7 for course in courses)
    assert median(course[0].new for course in courses) == pytest.approx(120, abs=12)


def test_words_are_a_programs_own() -> None:
    assert Words("a", "task").take(50) == Words("a", "task").take(50)
    assert Words("a", "task").take(50) != Words("b", "task").take(50)
    assert len(Words("a").take(50).split()) == 50


def trace(path: Path, prompts: list[int]) -> Path:
    """Weka's columns, one session of one agent."""
    lines = [
        "trace,agent,idx,t_s,in_tok,out_tok,lcp_prev_tok,best_prefix_tok,think_s,api_s,ttft_s,stop,itypes,otypes,model"
    ]
    for number, prompt in enumerate(prompts):
        lines.append(
            f"s,0,{number},{number * 10},{prompt},50,0,0,{2 if number else 0},1,,tool_use,text,tool_use,m"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_recorded_trace_becomes_courses(tmp_path: Path) -> None:
    path = trace(tmp_path / "weka.csv", [1000, 1250, 1500, 1700])
    courses, notes = recorded(path, None, Scale(context=0.1, output=1, max_out=32), 0)
    assert [tuple(step.new for step in course) for course in courses] == [(100, 20, 20, 15)]
    assert notes[-1] == "1 of 1 programs have at least 3 turns when scaled."


def test_a_trace_without_long_enough_programs_is_refused(tmp_path: Path) -> None:
    path = trace(tmp_path / "weka.csv", [1000, 1250])
    with pytest.raises(SystemExit, match="no program has 3 turns"):
        recorded(path, None, Scale(), 0)


def test_gaps_vary_as_recorded() -> None:
    gaps = Counter(step.gap_s > 0 for program in peers(3, 1) for step in program.steps)
    assert gaps == {True: 15, False: 3}
