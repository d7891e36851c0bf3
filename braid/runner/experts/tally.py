"""What a store counts beside its table: seconds, and how many experts a batch needs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Mean:
    """Of what was seen, the latest counting most."""

    value: float = 0.0
    count: int = 0

    def add(self, sample: float) -> None:
        self.count = min(self.count + 1, 64)
        self.value += (sample - self.value) / self.count


@dataclass(slots=True)
class LayerSeconds:
    """Of one layer, since the start."""

    stall: float = 0.0
    compute: float = 0.0
    planning: float = 0.0


@dataclass(slots=True)
class Unions:
    """Calls with so many rows, and the experts they needed."""

    calls: int = 0
    experts: int = 0

    @property
    def mean(self) -> float:
        return self.experts / self.calls if self.calls else 0.0


@dataclass(slots=True)
class Tally:
    """Written under the store's lock.

    ``unions`` by rows of the batch, those above 64 by the next power of two. ``fast``: seconds to compute one expert.
    ``slow``: experts that the tier below computed.
    """

    layers: list[LayerSeconds]
    unions: dict[int, Unions] = field(default_factory=dict)
    fast: Mean = field(default_factory=Mean)
    slow: int = 0

    def needed(self, rows: int, experts: int) -> None:
        """A call of ``rows`` tokens needs so many different experts."""
        rows = rows if rows <= 64 else 1 << (rows - 1).bit_length()
        union = self.unions.setdefault(rows, Unions())
        union.calls += 1
        union.experts += experts

    def total(self) -> LayerSeconds:
        """Of all layers."""
        layers = self.layers
        return LayerSeconds(
            sum(layer.stall for layer in layers),
            sum(layer.compute for layer in layers),
            sum(layer.planning for layer in layers),
        )
