from __future__ import annotations

import pytest

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.experts import ExpertShape
from braid.core.units import parse_amount
from braid.policy.experts.budget import ExpertDemand, decimal

SLOT = 1 << 20


def demand(asked: str | int, num_staging: int = 4) -> ExpertDemand:
    """4 layers of 16 experts, 2 for each token: 64 in all, a cycle of 8."""
    shape = ExpertShape(layers=4, per_layer=16, top_k=2)
    amount = parse_amount(asked, "expert_memory")
    return ExpertDemand(
        shape=shape, parameters=64 * 1000, slot_bytes=SLOT, num_staging=num_staging, asked=amount
    )


@pytest.mark.parametrize(
    ("asked", "slots"),
    [("25%", 16), ("10MiB", 10), (SLOT, 1), (2 * SLOT - 1, 1), ("100%", 64), ("300%", 64), ("auto", None)],
)
def test_slots_of_what_was_asked(asked: str | int, slots: int | None) -> None:
    assert demand(asked).asked_slots() == slots


@pytest.mark.parametrize(
    ("asked", "available", "slots"),
    [
        ("auto", 1000, 64),
        ("auto", 30, 26),
        ("auto", 3, 0),
        ("50%", 1000, 32),
        ("10MiB", 14, 10),
        ("300%", 68, 64),
    ],
)
def test_experts_in_main_memory_below_a_gpu(asked: str, available: int, slots: int) -> None:
    """All that fit beside the staging rows, unless a size is given."""
    assert demand("auto").host_slots(parse_amount(asked, "x"), available * SLOT) == slots


def test_main_memory_that_is_not_there_is_not_taken() -> None:
    with pytest.raises(CapacityError, match=r"expert_host_memory: 32 experts .* 33\.55 MB, and 32\.51 MB"):
        demand("auto").host_slots(parse_amount("50%", "x"), 35 * SLOT)
    with pytest.raises(InvalidParameterError, match=f"expert_host_memory is 1 bytes, .* takes {SLOT}"):
        demand("auto").host_slots(parse_amount(1, "x"), 35 * SLOT)


@pytest.mark.parametrize("asked", [SLOT - 1, "1%"])
def test_less_than_one_expert_is_refused(asked: str | int) -> None:
    with pytest.raises(InvalidParameterError, match=f"but one expert takes {SLOT}") as caught:
        demand(asked).asked_slots()
    assert caught.value.param == "expert_memory"


def test_the_machine_gives_at_least_a_cycle_and_at_most_all() -> None:
    wanted = demand("auto")
    assert wanted.least_bytes() == (8 + 4) * SLOT
    assert wanted.slots_in(wanted.least_bytes()) == 8
    assert wanted.slots_in(50 * SLOT) == 46
    assert wanted.slots_in(1000 * SLOT) == 64


def test_what_was_asked_is_neither_more_nor_less() -> None:
    wanted = demand("25%")
    assert wanted.least_bytes() == (16 + 4) * SLOT
    assert wanted.slots_in(1000 * SLOT) == 16


def test_below_a_cycle_the_cost_is_said() -> None:
    (note,) = demand(3 * SLOT).notes(3)
    assert "holds 3 experts, fewer than the 8" in note
    assert f"at least {5 * SLOT / 1e6:.2f} MB" in note
    assert demand(8 * SLOT).notes(8) == []


@pytest.mark.parametrize(
    ("count", "text"), [(2_433_024, "2.43 MB"), (3_737_124_864, "3.74 GB"), (98_304, "0.0983 MB")]
)
def test_bytes_as_disks_are_measured(count: int, text: str) -> None:
    assert decimal(count) == text


def test_more_than_all_is_said() -> None:
    (note,) = demand("200%").notes(64)
    assert "more than all experts need" in note
    assert demand("100%").notes(64) == []
