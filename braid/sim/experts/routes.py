"""Recorded routing: which experts every token used in every layer, and the router's weights.

A file is CSV with a line of names; the columns ``phase`` (0 prefill, 1 decode), ``step`` (token), ``layer``, ``slot``
(the router's rank) and ``expert`` (within its layer) are needed, ``turn`` and ``weight`` are read if they are there.
Lines that begin with ``#`` say what the model is, as ``name=value``: ``n_layer``, ``n_expert``, ``n_expert_used``, and
for a ``layer`` its ``expert_bytes`` and ``dense_bytes``. A token need not have rows for every layer: some programs
compute only the last position of a prompt in the last layer.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from braid.core.errors import BraidError
from braid.core.experts import ExpertShape

NEEDED = ("phase", "step", "layer", "slot", "expert")
MAX_EXPERTS = 1 << 20
"""Of all layers; more is a file gone wrong."""
_MAX_DIGITS = 18


class RouteError(BraidError, ValueError):
    """A file of recorded routing cannot be read; the text names the line."""


class Route(NamedTuple):
    """What one token used in one layer.

    Args:
        experts: ids over all layers, the router's first choice first.
        weights: of those, as recorded; empty where the file has none.
    """

    turn: int
    step: int
    layer: int
    is_prefill: bool
    experts: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """A recording: tokens in order, each with its layers in order.

    Args:
        model: as the file calls it; empty if it does not.
        expert_bytes, dense_bytes: of every layer; empty where the file says nothing of them.
    """

    shape: ExpertShape
    routes: tuple[Route, ...]
    model: str = ""
    expert_bytes: tuple[int, ...] = ()
    dense_bytes: tuple[int, ...] = ()

    def num_tokens(self, *, is_prefill: bool) -> int:
        return len({(route.turn, route.step) for route in self.routes if route.is_prefill is is_prefill})

    def distinct(self) -> list[int]:
        """Experts that are used at all, of every layer."""
        used: list[set[int]] = [set() for _ in range(self.shape.layers)]
        for route in self.routes:
            used[route.layer].update(route.experts)
        return [len(experts) for experts in used]


@dataclass(slots=True)
class _Header:
    """What lines with ``#`` say."""

    words: dict[str, str] = field(default_factory=dict)
    expert_bytes: dict[int, int] = field(default_factory=dict)
    dense_bytes: dict[int, int] = field(default_factory=dict)

    def tell(self, number: int, line: str) -> None:
        words = dict(word.split("=", 1) for word in line.lstrip("#").split() if "=" in word)
        if "layer" not in words:
            self.words.update(words)
            return
        layer = _whole(number, "layer", words["layer"])
        for name, sizes in (("expert_bytes", self.expert_bytes), ("dense_bytes", self.dense_bytes)):
            if name in words:
                sizes[layer] = _whole(number, name, words[name])

    def whole(self, name: str) -> int | None:
        """
        Raises:
            RouteError: it is there, and is no number of anything.
        """
        word = self.words.get(name)
        if word is None:
            return None
        if not _is_whole(word) or int(word) < 1:
            raise RouteError(f"{name} must be an integer >= 1, got {word!r}")
        return int(word)


class _Row(NamedTuple):
    line: int
    slot: int
    expert: int
    weight: float | None


def read_routes(path: Path) -> Routes:
    """
    Raises:
        RouteError: naming the file, and the line if it is one line's fault.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return parse_routes(file)
    except OSError as error:
        raise RouteError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RouteError(f"cannot read {path}: it is no text") from None
    except RouteError as error:
        raise RouteError(f"{path}: {error}") from None


def parse_routes(lines: Iterable[str]) -> Routes:
    """
    Raises:
        RouteError: a line that is none of a recording, or nothing in it at all.
    """
    header = _Header()
    names: dict[str, int] | None = None
    found: dict[tuple[int, int, int, int], list[_Row]] = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            header.tell(number, line)
        elif not line.strip():
            continue
        elif names is None:
            names = _names(number, line)
        else:
            key, row = _row(number, line, names)
            found.setdefault(key, []).append(row)
    if not found:
        raise RouteError("it holds no routing")
    return _routes(header, found)


def _names(number: int, line: str) -> dict[str, int]:
    names = {name.strip(): place for place, name in enumerate(_cells(number, line))}
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise RouteError(
            f"line {number}: no column {', '.join(missing)}; a recording begins with the names of its columns"
        )
    return names


def _row(number: int, line: str, names: Mapping[str, int]) -> tuple[tuple[int, int, int, int], _Row]:
    cells = _cells(number, line)
    if len(cells) != len(names):
        raise RouteError(f"line {number}: {len(names)} values are expected, got {len(cells)}")
    phase, step, layer, slot, expert = (_whole(number, name, cells[names[name]]) for name in NEEDED)
    if phase > 1:
        raise RouteError(f"line {number}: phase must be 0 (prefill) or 1 (decode), got {phase}")
    turn = _whole(number, "turn", cells[names["turn"]]) if "turn" in names else 0
    weight = _weight(number, cells[names["weight"]]) if "weight" in names else None
    return (turn, step, layer, phase), _Row(number, slot, expert, weight)


def _cells(number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise RouteError(f"line {number}: {error}") from None


def _is_whole(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= _MAX_DIGITS


def _whole(number: int, name: str, word: str) -> int:
    word = word.strip()
    if not _is_whole(word):
        raise RouteError(f"line {number}: {name} must be an integer >= 0, got {word!r}")
    return int(word)


def _weight(number: int, word: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = -1.0
    if not isfinite(weight) or weight < 0:
        raise RouteError(f"line {number}: weight must be a number >= 0, got {word.strip()!r}")
    return weight


def _routes(header: _Header, found: Mapping[tuple[int, int, int, int], Sequence[_Row]]) -> Routes:
    shape = _shape(header, found)
    routes = []
    for (turn, step, layer, phase), rows in sorted(found.items()):
        _check(shape, layer, rows)
        ranked = sorted(rows, key=lambda row: row.slot)
        experts = tuple(shape.id_of(layer, row.expert) for row in ranked)
        weights = tuple(row.weight for row in ranked if row.weight is not None)
        routes.append(Route(turn, step, layer, phase == 0, experts, weights))
    return Routes(
        shape=shape,
        routes=tuple(routes),
        model=header.words.get("model", ""),
        expert_bytes=_sizes(header.expert_bytes, shape.layers),
        dense_bytes=_sizes(header.dense_bytes, shape.layers),
    )


def _shape(header: _Header, found: Mapping[tuple[int, int, int, int], Sequence[_Row]]) -> ExpertShape:
    """As the file says, else as large as what is in it."""
    layers = header.whole("n_layer") or 1 + max(layer for _, _, layer, _ in found)
    per_layer = header.whole("n_expert") or 1 + max(row.expert for rows in found.values() for row in rows)
    shape = ExpertShape(layers, per_layer, header.whole("n_expert_used") or max(map(len, found.values())))
    if shape.total > MAX_EXPERTS:
        raise RouteError(f"{layers} layers of {per_layer} experts are more than {MAX_EXPERTS:,} experts")
    return shape


def _check(shape: ExpertShape, layer: int, rows: Sequence[_Row]) -> None:
    slots, experts = set(), set()
    for row in rows:
        if layer >= shape.layers:
            raise RouteError(f"line {row.line}: layer must be below {shape.layers}, got {layer}")
        if row.expert >= shape.per_layer:
            raise RouteError(f"line {row.line}: expert must be below {shape.per_layer}, got {row.expert}")
        if row.slot in slots or row.expert in experts:
            raise RouteError(
                f"line {row.line}: this token and layer has slot {row.slot} or expert {row.expert} twice"
            )
        slots.add(row.slot)
        experts.add(row.expert)
    if len(rows) > shape.top_k:
        raise RouteError(
            f"line {rows[-1].line}: a token has {len(rows)} experts of a layer, not {shape.top_k}"
        )


def _sizes(sizes: Mapping[int, int], layers: int) -> tuple[int, ...]:
    return (
        tuple(sizes[layer] for layer in range(layers))
        if all(layer in sizes for layer in range(layers))
        else ()
    )
