"""The thread team: several callers, callers that come and go, and more members than cores."""

from __future__ import annotations

import threading

import pytest
import torch

import braid.kernels as ops

pytestmark = pytest.mark.skipif(not ops.describe().startswith("native"), reason="needs the native library")

X = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(1000, 512, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.fixture
def expected() -> torch.Tensor:
    return ops.linear(X, WEIGHT)


def compute(times: int, expected: torch.Tensor, wrong: list[int]) -> None:
    wrong.extend(1 for _ in range(times) if not torch.equal(ops.linear(X, WEIGHT), expected))


def in_threads(count: int, times: int, expected: torch.Tensor) -> list[int]:
    wrong: list[int] = []
    threads = [threading.Thread(target=compute, args=(times, expected, wrong)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_callers_side_by_side_have_teams_of_their_own(expected: torch.Tensor) -> None:
    assert in_threads(4, 200, expected) == []


def test_callers_that_end_take_their_helpers_along(expected: torch.Tensor) -> None:
    def native_threads() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    assert in_threads(2, 3, expected) == []
    before = native_threads()
    for _ in range(20):
        assert in_threads(2, 3, expected) == []
    while native_threads() > before + 8:  # helpers leave on their own, soon after their caller
        pass


def test_more_members_than_cores_change_nothing(expected: torch.Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            wrong: list[int] = []
            compute(50, expected, wrong)
            assert wrong == []
    finally:
        torch.set_num_threads(threads)
