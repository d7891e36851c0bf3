"""The small policies: order, admission, partition, victim."""

from __future__ import annotations

import pytest

from braid.core.request import Request
from braid.core.sampling import SamplingParams
from braid.policy.admission import PoolLoad, WatermarkAdmission
from braid.policy.order import FirstCome
from braid.policy.partition import DecodeFirst
from braid.policy.victim import LastInOrder


def request(name: str, arrival: float = 0.0, priority: int = 0) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=(1,),
        params=SamplingParams(),
        arrival_time=arrival,
        priority=priority,
    )


def test_first_come_by_priority_arrival_and_sequence() -> None:
    requests = [request("d", 2.0), request("b", 1.0), request("c", 1.0), request("a", 9.0, priority=-1)]
    keyed = sorted((FirstCome().key(r, i), r.request_id) for i, r in enumerate(requests))
    assert [name for _, name in keyed] == ["a", "b", "c", "d"]


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


@pytest.mark.parametrize(
    ("budget", "decodes", "share"), [(8, 3, (3, 5)), (8, 8, (8, 0)), (8, 9, (8, 0)), (8, 0, (0, 8))]
)
def test_decodes_take_first(budget: int, decodes: int, share: tuple[int, int]) -> None:
    assert DecodeFirst().share(budget, decodes) == share


def test_the_last_is_the_victim() -> None:
    candidates = [request("a"), request("b")]
    assert LastInOrder().choose(candidates).request_id == "b"
