"""Records: exact where nothing is quantised, within half a step where something is, and stable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.checkpoint.quantise import LARGEST, pack_expert, unpack_expert, weight_dtype
from braid.core.errors import CheckpointError
from braid.core.experts import FORMATS, QUANTISED, ExpertLayout

SIZES = [(64, 32), (128, 96), (192, 256)]


def weights(layout: ExpertLayout, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = (2 * layout.size, layout.hidden), (layout.hidden, layout.size)
    both = (torch.randn(shape, generator=random) * scale for shape in shapes)
    gate_up, down = (weight.to(weight_dtype(layout)) for weight in both)
    return gate_up, down


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_plain_formats_are_exact(form: str) -> None:
    layout = ExpertLayout(form, 48, 40)
    gate_up, down = weights(layout)
    down[3, 5] = float("inf")
    back = unpack_expert(pack_expert(gate_up, down, layout), layout)
    assert torch.equal(back[0], gate_up)
    assert torch.equal(back[1], down)


@settings(max_examples=12, deadline=None)
@given(
    form=st.sampled_from(QUANTISED),
    sizes=st.sampled_from(SIZES),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-30, 30),
)
def test_quantised_numbers_are_within_half_a_step_and_stable(
    form: str, sizes: tuple[int, int], seed: int, exponent: int
) -> None:
    layout = ExpertLayout(form, *sizes)
    pair = weights(layout, seed, 2.0**exponent)
    record = pack_expert(*pair, layout)
    back = unpack_expert(record, layout)
    for weight, read in zip(pair, back, strict=True):
        groups = weight.view(len(weight), -1, layout.group_of(weight.shape[1]))
        step = groups.abs().amax(-1, keepdim=True) / LARGEST[form]
        error = (read.view_as(groups) - groups).abs()
        # The scale's rounding (2^-9) lets the largest numbers of a group miss by LARGEST * 2^-9 of a step more.
        assert (error <= step * (0.501 + LARGEST[form] * 2**-9)).all()
        assert (read.view_as(groups).abs().amax(-1, keepdim=True) > 0).all()
    assert torch.equal(pack_expert(*back, layout), record)


def test_the_order_of_nibbles_and_parts_is_the_layouts() -> None:
    layout = ExpertLayout("int4", 64, 32)
    gate_up, down = torch.zeros(64, 64), torch.zeros(64, 32)
    # Row 1, group of 64 with scale 2: number 33 is 3, number 49 is -7.
    gate_up[1, 33], gate_up[1, 49] = 6.0, -14.0
    down[2, 5] = 3.5
    record = pack_expert(gate_up, down, layout)
    (q1, _), (s1, _), (q2, _), (s2, _) = layout.parts
    assert record[q1 + 32 + 17] == (3 + 8) | (-7 + 8) << 4  # row 1, second 32, byte 1
    assert record[q1] == 0x88
    assert record[s1 + 2 : s1 + 4].view(torch.bfloat16).item() == 2.0
    assert record[s1 : s1 + 2].view(torch.bfloat16).item() == 0.0
    assert record[q2 + 2 * 16 + 5] == 0x8F
    assert record[s2 + 4 : s2 + 6].view(torch.bfloat16).item() == 0.5
    assert record[s2 + 64 * 2 :].sum() == 0


def test_int8_reads_as_signed_bytes() -> None:
    layout = ExpertLayout("int8", 32, 32)
    gate_up, down = torch.zeros(64, 32), torch.zeros(32, 32)
    gate_up[0, :2] = torch.tensor([127.0, -64.0])
    record = pack_expert(gate_up, down, layout)
    assert record[:2].view(torch.int8).tolist() == [127, -64]


@pytest.mark.parametrize("form", QUANTISED)
def test_zeros_and_tiny_numbers_give_zeros(form: str) -> None:
    layout = ExpertLayout(form, 32, 32)
    read = unpack_expert(pack_expert(torch.zeros(64, 32), torch.full((32, 32), 1e-39), layout), layout)
    assert not read[0].any()
    assert not read[1].any()


@pytest.mark.parametrize("form", QUANTISED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(form: str, bad: float) -> None:
    layout = ExpertLayout(form, 32, 32)
    gate_up, down = weights(layout)
    down[7, 7] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        pack_expert(gate_up, down, layout)


@pytest.mark.parametrize("form", FORMATS)
def test_records_are_whole_pages(form: str) -> None:
    layout = ExpertLayout(form, 128, 96)
    record = pack_expert(*weights(layout), layout)
    assert len(record) == layout.record_bytes
    assert len(record) % 4096 == 0
