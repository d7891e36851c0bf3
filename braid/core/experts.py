"""Words about routed experts: how they are numbered, and how the numbers of one lie in a record.

An expert's record is the same in a file, in main memory and on a device: what is read is computed with, and nothing is
laid out anew on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

PAGE = 4096
"""Records are whole pages, so that they can be read past the page cache into memory of their own."""
FORMATS = ("float32", "bfloat16", "int8", "int4")
QUANTISED = ("int8", "int4")
GROUPS = (128, 64, 32)
"""Numbers of a row that share a scale: the largest of these that divides the row."""
_BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
SCALE_BYTES = 2


class ExpertShape(NamedTuple):
    """The routed experts of a model. An expert's id counts over all of its MoE layers: ``layer * per_layer + index``.

    ``layers`` counts MoE layers only, in the model's order; ``top_k`` are those that one token uses in a layer.
    """

    layers: int
    per_layer: int
    top_k: int

    @property
    def total(self) -> int:
        return self.layers * self.per_layer

    @property
    def cycle(self) -> int:
        """Experts that one token uses."""
        return self.layers * self.top_k

    def id_of(self, layer: int, index: int) -> int:
        return layer * self.per_layer + index

    def layer_of(self, expert: int) -> int:
        return expert // self.per_layer


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Where the numbers of one expert lie in its record.

    Four parts, each beginning on a multiple of 64 bytes: ``gate_up`` [2F, D] (the gate's rows, then up's), its scales
    [2F, D / group], ``down`` [D, F], its scales [D, F / group]. Scales are bfloat16, and there are none in formats that
    are not quantised. Quantised numbers are signed and symmetric: ``weight = scale * q`` with q in [-127, 127] (int8)
    or [-7, 7] (int4). Two int4 numbers lie in one byte as q + 8: of every 32 in a row, byte i holds number i in its low
    and number i + 16 in its high half.

    Args:
        hidden: D, the model's hidden size; ``size``: F, an expert's own.

    Raises:
        ValueError: an unknown format, or a row that no group divides.
    """

    format: str
    hidden: int
    size: int

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"expert format {self.format!r} is not known; choices: {', '.join(FORMATS)}")
        if self.is_quantised and not (self.group_of(self.hidden) and self.group_of(self.size)):
            raise ValueError(
                f"rows of {self.hidden} and {self.size} cannot be {self.format}: a multiple of {GROUPS[-1]} is needed"
            )

    @property
    def is_quantised(self) -> bool:
        return self.format in QUANTISED

    @staticmethod
    def group_of(columns: int) -> int:
        """Numbers that share a scale in rows of so many; 0 where no group divides them."""
        return next((group for group in GROUPS if columns % group == 0), 0)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        return rows * columns * _BITS[self.format] // 8

    def scales_bytes(self, rows: int, columns: int) -> int:
        return rows * (columns // self.group_of(columns)) * SCALE_BYTES if self.is_quantised else 0

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """``(offset, bytes)`` of gate_up, its scales, down, its scales."""
        sizes = []
        for rows, columns in ((2 * self.size, self.hidden), (self.hidden, self.size)):
            sizes += [self.matrix_bytes(rows, columns), self.scales_bytes(rows, columns)]
        offsets, end = [], 0
        for size in sizes:
            offsets.append(end)
            end += -(-size // 64) * 64
        return tuple(zip(offsets, sizes, strict=True))

    @property
    def record_bytes(self) -> int:
        """Whole pages."""
        offset, size = self.parts[-1]
        return -(-(offset + size) // PAGE) * PAGE


class LayerUse(NamedTuple):
    """One layer's experts: in slots now, and uses since the start, each an expert that a step of the layer needed.

    A hit was in its slot (or on its way there); a miss had to be read and got a slot; a bypass had to be read and got
    none.
    """

    resident: int
    hits: int
    misses: int
    bypasses: int


class ExpertStats(NamedTuple):
    """A store of experts: what it is, its state now, and counts, bytes and seconds since it was opened.

    Args:
        bytes_by_cause: read from the file for ``demand`` (a step of decodes waits), ``prefill`` and ``prefetch``.
        prefetched: experts fetched early by what became of them: ``useful``, ``late`` (needed before they were there),
            ``wasted`` (evicted unused).
        stall_s: steps stood still for reads. ``compute_s``: they computed experts. ``link_busy_s``: reads were under
            way. ``planning_s``: it was decided what goes where.
        failed_reads: reads that brought nothing, or something else than was written.
        computed: experts that steps computed, by where: ``device`` (the model's) and ``host`` (the CPU, below a GPU).
    """

    total: int = 0
    slots: int = 0
    slot_bytes: int = 0
    cycle: int = 0
    layers: tuple[LayerUse, ...] = ()
    bytes_by_cause: Mapping[str, int] = {}
    prefetched: Mapping[str, int] = {}
    stall_s: float = 0.0
    compute_s: float = 0.0
    link_busy_s: float = 0.0
    planning_s: float = 0.0
    failed_reads: int = 0
    computed: Mapping[str, int] = {}

    @property
    def resident(self) -> int:
        return sum(layer.resident for layer in self.layers)
