"""Plans of faults: which visits they hit, and that they cost nothing elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from braid.core.faults import Fault, FaultKind, Faults, InjectedError


def double(number: int) -> int:
    return 2 * number


def outcomes(faults: Faults, phases: list[str]) -> list[str]:
    """What each visit of ``p`` does."""
    told = []
    for phase in phases:
        try:
            faults.visit("p", phase)
        except (InjectedError, MemoryError) as error:
            told.append(type(error).__name__)
        else:
            told.append("")
    return told


def test_a_call_that_no_plan_names_is_left_alone() -> None:
    assert Faults().around("p", double) is double
    assert Faults([Fault(point="other")]).around("p", double) is double


def test_the_named_visits_fail() -> None:
    call = Faults([Fault(point="p", first=2, count=2)]).around("p", double)
    assert call(1) == 2
    for _ in range(2):
        with pytest.raises(InjectedError, match="injected at p"):
            call(1)
    assert call(number=3) == 6


def test_another_plan_counts_anew() -> None:
    faults = Faults(points=("p",))
    call = faults.around("p", double)
    assert call(1) == 2
    faults.arm([Fault(point="p")])
    with pytest.raises(InjectedError):
        call(1)
    faults.arm([])
    assert call(1) == 2


def test_phases_are_counted_apart() -> None:
    faults = Faults([Fault(point="p", phase="b", first=2), Fault(point="p", first=5, kind=FaultKind.MEMORY)])
    assert outcomes(faults, ["a", "b", "a", "b", "a"]) == ["", "", "", "InjectedError", "MemoryError"]


def test_a_phase_can_come_from_the_arguments() -> None:
    faults = Faults([Fault(point="p", phase="odd")])
    call = faults.around("p", double, lambda number: "odd" if number % 2 else "even")
    assert call(2) == 4
    assert faults.unstruck
    with pytest.raises(InjectedError):
        call(3)
    assert faults.unstruck == ()


def test_items_are_visited_one_by_one() -> None:
    faults = Faults([Fault(point="p", first=3)])
    items = faults.over("p", iter("abc"))
    assert [next(items), next(items)] == ["a", "b"]
    with pytest.raises(InjectedError):
        next(items)


def test_a_delay_goes_on_afterwards() -> None:
    slept: list[float] = []
    faults = Faults([Fault(point="p", kind=FaultKind.DELAY, seconds=1.5)], sleep=slept.append)
    assert faults.around("p", double)(2) == 4
    assert slept == [1.5]


def test_a_kill_ends_the_process_at_once() -> None:
    code = (
        "from braid.core.faults import Fault, FaultKind, Faults\n"
        "try:\n    Faults([Fault(point='p', kind=FaultKind.KILL)]).visit('p')\nfinally:\n    print('alive')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stdout) == (-9, b"")
