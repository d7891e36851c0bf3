"""The search of a sweep against simulated servers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from braid.core.errors import InvalidParameterError
from braid.lab.sweep.search import Answer, Probe, Reading, Search, SearchOptions

Curve = Callable[[Probe], Reading]


def play(search: Search, curve: Curve, most: int = 200) -> list[Probe]:
    probes = []
    while (probe := search.probe()) is not None:
        probes.append(probe)
        assert len(probes) <= most, "the search does not end"
        search.tell(probe.load, curve(probe))
    return probes


def exact(attainment: float) -> Reading:
    return Reading(attainment, attainment, attainment)


def cliff(at: float) -> Curve:
    return lambda probe: exact(1.0 if probe.load <= at else 0.2)


@pytest.mark.parametrize("limit", [0.021, 0.4, 1.0, 1.7, 5.0, 60.0])
def test_a_sharp_limit_is_bracketed(limit: float) -> None:
    search = Search(SearchOptions(resolution=0.05))
    probes = play(search, cliff(limit))
    kind, met, missed = search.answer()
    assert kind == "bracketed"
    assert met is not None
    assert missed is not None
    assert met <= limit < missed <= met * 1.05
    assert [probe.number for probe in probes] == list(range(len(probes)))
    assert len(probes) <= 16
    for end in (met, missed):
        assert sum(probe.load == end for probe in probes) == 2


def test_all_met_and_nothing_met() -> None:
    options = SearchOptions(lowest=0.25, highest=8.0)
    search = Search(options)
    assert [probe.load for probe in play(search, cliff(100.0))] == [1, 2, 4, 8, 8]
    assert search.answer() == Answer("all_met", 8.0, None)
    search = Search(options)
    assert [probe.load for probe in play(search, cliff(0.0))] == [1, 0.5, 0.25, 0.25]
    assert search.answer() == Answer("none_met", None, 0.25)


def noisy(rng: np.random.Generator, limit: float, num: int, between: float) -> Curve:
    """A server that keeps ``1 / (1 + (load / limit)**8 / 9)`` of the requests (0.9 at ``limit``), on average."""

    def curve(probe: Probe) -> Reading:
        share = 1 / (1 + (probe.load / limit) ** 8 / 9)
        odds = math.log(share / (1 - share)) + rng.normal(0, between)
        seen = rng.binomial(num, 1 / (1 + math.exp(-odds))) / num
        half = 1.96 * math.sqrt(max(seen * (1 - seen), 1 / num) / num)
        return Reading(seen, max(0.0, seen - half), min(1.0, seen + half))

    return curve


@pytest.mark.parametrize("between", [0.0, 0.4])
def test_noise_moves_the_answer_little(between: float) -> None:
    found = []
    for seed in range(100):
        search = Search(SearchOptions(resolution=0.05))
        play(search, noisy(np.random.default_rng(seed), 3.3, 300, between))
        kind, met, missed = search.answer()
        assert kind == "bracketed"
        assert met is not None
        assert missed is not None
        assert met < missed <= met * 1.05
        found.append(math.sqrt(met * missed))
    assert np.mean(np.abs(np.log(np.array(found) / 3.3)) < 0.1) >= 0.9


def test_a_load_near_the_limit_is_repeated_and_called_close() -> None:
    search = Search(SearchOptions(max_repeats=3))
    curve: Curve = lambda probe: Reading(0.91, 0.85, 0.97) if probe.load == 1 else cliff(1)(probe)  # noqa: E731
    probes = play(search, curve)
    assert [probe.repeat for probe in probes if probe.load == 1] == [0, 1, 2]
    level = next(level for level in search.levels() if level.load == 1)
    assert level.close
    assert level.verdict == "met"
    assert level.valid == 3


def test_an_end_that_turns_out_wrong_sends_the_search_on() -> None:
    def curve(probe: Probe) -> Reading:
        lucky = probe.load > 2 and probe.load < 3 and probe.repeat == 0
        return exact(0.95 if lucky else 1.0 if probe.load <= 2 else 0.1)

    search = Search(SearchOptions())
    play(search, curve)
    kind, met, missed = search.answer()
    assert kind == "bracketed"
    assert met is not None
    assert missed is not None
    assert 2 <= met < missed <= met * 1.1
    assert met < 2.2


def test_no_monotone_server_is_needed() -> None:
    """A hole in the curve: the answer is two neighbours, one met and one missed."""

    def curve(probe: Probe) -> Reading:
        return exact(0.3 if 2.2 < probe.load < 3.1 or probe.load > 20 else 1.0)

    search = Search(SearchOptions(start=2.5))
    play(search, curve)
    kind, met, missed = search.answer()
    assert kind == "bracketed"
    assert met is not None
    assert missed is not None
    assert met <= 2.2 < missed < 3.1


def test_invalid_runs_decide_nothing() -> None:
    def curve(probe: Probe) -> Reading:
        return Reading(invalid="late") if probe.load > 3 else exact(1.0)

    search = Search(SearchOptions())
    probes = play(search, curve)
    kind, met, missed = search.answer()
    assert kind == "client_limited"
    assert met is not None
    assert missed is not None
    assert met <= 3 < missed <= met * 1.1
    assert sum(probe.load == 4 for probe in probes) == 2
    flaky: Curve = lambda probe: (  # noqa: E731
        Reading(invalid="late") if probe.repeat == 0 else cliff(1.5)(probe)
    )
    search = Search(SearchOptions())
    play(search, flaky)
    assert search.answer().kind == "bracketed"
    search = Search(SearchOptions(lowest=0.5))
    play(search, lambda _: Reading(invalid="late"))
    assert search.answer() == Answer("unmeasured", None, 0.5)


def test_a_search_that_is_left_says_what_it_knows() -> None:
    search = Search(SearchOptions())
    assert search.answer() == Answer("stopped", None, None)
    search.tell(1.0, exact(1.0))
    search.tell(2.0, exact(0.1))
    assert search.answer() == Answer("stopped", 1.0, 2.0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"target": 1.5}, "attainment"),
        ({"start": 100.0}, "lowest <= start <= highest"),
        ({"growth": 1.0}, "growth must be above 1"),
        ({"resolution": 0.0}, "resolution above 0"),
        ({"ends": 9}, "1 <= ends <= most"),
    ],
)
def test_wrong_options_are_said(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(InvalidParameterError, match=text):
        SearchOptions(**wrong)  # type: ignore[arg-type]
