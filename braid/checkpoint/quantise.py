"""An expert's weights to the record that `core.experts.ExpertLayout` describes, and back.

Dimensions: F an expert's own size, D the model's hidden size, R rows, C columns, G groups in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid.core.errors import CheckpointError
from braid.core.experts import ExpertLayout

LARGEST = {"int8": 127, "int4": 7}
"""Numbers go from minus this to this."""
_PLAIN = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BLOCK, _HALF = 32, 16
_TINY = torch.finfo(torch.bfloat16).tiny


def weight_dtype(layout: ExpertLayout) -> torch.dtype:
    """What `pack_expert` wants its weights in, and what `unpack_expert` gives."""
    return _PLAIN.get(layout.format, torch.float32)


def pack_expert(gate_up_2FD: Tensor, down_DF: Tensor, layout: ExpertLayout) -> Tensor:
    """The record of one expert.

    A group's scale is its largest number by absolute value over ``LARGEST``, rounded to bfloat16 before it divides:
    what is read back is what was rounded. Packing what was unpacked gives the same record.

    Args:
        gate_up_2FD: the gate's rows, then up's, in ``weight_dtype(layout)``.
        down_DF: in the same type.

    Returns:
        uint8, ``layout.record_bytes`` long; what lies between the parts is 0.

    Raises:
        CheckpointError: numbers that are not finite cannot be quantised.
    """
    size, hidden = layout.size, layout.hidden
    assert gate_up_2FD.shape == (2 * size, hidden), (gate_up_2FD.shape, layout)
    assert down_DF.shape == (hidden, size), (down_DF.shape, layout)
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    parts = [*_stored(gate_up_2FD, layout), *_stored(down_DF, layout)]
    for part, (offset, count) in zip(parts, layout.parts, strict=True):
        if part is not None:
            record[offset : offset + count] = part.view(torch.uint8).flatten()
    return record


def unpack_expert(record: Tensor, layout: ExpertLayout) -> tuple[Tensor, Tensor]:
    """``(gate_up [2F, D], down [D, F])`` of a record, in ``weight_dtype(layout)``: products are exact in float32."""
    assert record.dtype == torch.uint8, record.dtype
    assert record.numel() == layout.record_bytes, (record.numel(), layout)
    parts = [record[offset : offset + count] for offset, count in layout.parts]
    size, hidden = layout.size, layout.hidden
    return (
        _weights(parts[0], parts[1], 2 * size, hidden, layout),
        _weights(parts[2], parts[3], hidden, size, layout),
    )


def _stored(weight_RC: Tensor, layout: ExpertLayout) -> tuple[Tensor, Tensor | None]:
    """The numbers as they are stored, and their scales."""
    dtype = weight_dtype(layout)
    assert weight_RC.dtype == dtype, (weight_RC.dtype, layout)
    if not layout.is_quantised:
        return weight_RC.contiguous(), None
    rows, columns = weight_RC.shape
    groups_RGC = weight_RC.reshape(rows, -1, layout.group_of(columns))
    scales_RG = _scales(groups_RGC, LARGEST[layout.format])
    # Where the scale is 0, all numbers of the group are too small to be anything but 0.
    steps_RG1 = scales_RG.float().masked_fill_(scales_RG == 0, 1.0).unsqueeze(-1)
    largest = LARGEST[layout.format]
    q_RC = (groups_RGC / steps_RG1).round_().clamp_(-largest, largest).to(torch.int8).flatten(1)
    return (q_RC if layout.format == "int8" else _nibbles(q_RC)), scales_RG


def _scales(groups_RGC: Tensor, largest: int) -> Tensor:
    scales_RG = groups_RGC.abs().amax(-1) / largest
    if not scales_RG.isfinite().all():
        raise CheckpointError("an expert holds numbers that are not finite")
    # Subnormal scales are too coarse to divide by, and such numbers too small to matter.
    return torch.where(scales_RG < _TINY, 0.0, scales_RG).to(torch.bfloat16)


def _nibbles(q_RC: Tensor) -> Tensor:
    low, high = (q_RC + 8).to(torch.uint8).view(len(q_RC), -1, 2, _HALF).unbind(2)
    return low | (high << 4)


def _from_nibbles(packed: Tensor, rows: int) -> Tensor:
    packed = packed.view(rows, -1, 1, _HALF)
    return torch.cat((packed & 15, packed >> 4), dim=2).to(torch.int8).flatten(1) - 8


def _weights(part: Tensor, scales: Tensor, rows: int, columns: int, layout: ExpertLayout) -> Tensor:
    if not layout.is_quantised:
        return part.view(weight_dtype(layout)).view(rows, columns)
    q_RC = part.view(torch.int8).view(rows, columns) if layout.format == "int8" else _from_nibbles(part, rows)
    groups_RGC = q_RC.float().view(rows, -1, layout.group_of(columns))
    scales_RG = scales.view(torch.bfloat16).view(rows, -1).float()
    return (groups_RGC * scales_RG.unsqueeze(-1)).view(rows, columns)
