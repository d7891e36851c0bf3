"""The small policies: admission, and how a step is shared."""

from __future__ import annotations

import pytest

from braid.policy.admission import PoolLoad, WatermarkAdmission


@pytest.mark.parametrize(
    ("load", "admitted"),
    [
        (PoolLoad(num_needed=80, num_free=90, num_blocks=100, num_running=1), True),
        (PoolLoad(num_needed=81, num_free=90, num_blocks=100, num_running=1), False),
        (PoolLoad(num_needed=90, num_free=90, num_blocks=100, num_running=0), True),
        (PoolLoad(num_needed=91, num_free=90, num_blocks=100, num_running=0), False),
    ],
)
def test_the_watermark_stays_free_except_for_the_first(load: PoolLoad, admitted: bool) -> None:
    policy = WatermarkAdmission(max_num_seqs=2, watermark=0.1)
    assert policy.admits(load) is admitted


def test_seats() -> None:
    policy = WatermarkAdmission(max_num_seqs=2)
    assert [policy.has_seat(n) for n in range(4)] == [True, True, False, False]
