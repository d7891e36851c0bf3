"""Caches of experts on recorded routing: ours beside the published tables.

Every cell is one replay of one prompt's routing (`braid.sim.experts.replay`): caches start empty and run through the
prompt, every miss is admitted, hits are counted in decode. Nothing is measured, so any machine gives the same numbers.
One prompt per model: a point is noise, and at half of the experts nothing is left to tell policies apart.

    python benchmarks/expert_caches.py --data DIR [--json FILE] [--only NAME]

DIR holds ``experts/qwen3-30b-a3b.route.csv`` and ``experts/gpt-oss-120b.route.csv`` (recorded by BigMoeOnEdge,
Apache-2.0). ``--json`` is ``results/expert-caches.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from common import save, show

from braid.policy.experts.catalog import ORACLE
from braid.sim.experts.replay import EVERY_MISS, SERVED, ceiling, replay
from braid.sim.experts.routes import Routes, read_routes

FILES = MappingProxyType(
    {"qwen3-30b-a3b": "qwen3-30b-a3b.route.csv", "gpt-oss-120b": "gpt-oss-120b.route.csv"}
)
WITHIN = 0.1
"""Points by which a cell may differ from the published one, which has one decimal."""


class Table(NamedTuple):
    """Decode hits in per cent, as published: for every size (slots per layer) those of the policies."""

    model: str
    scope: str
    policies: tuple[str, ...]
    rows: Mapping[int, tuple[float, ...]]


_ALL = ("lru", "lfu", "mrs-paper", "mrs", "ewma", ORACLE)
_THREE = ("lru", "lfu", "mrs")
TABLES = (
    Table(
        "qwen3-30b-a3b",
        "layer",
        _ALL,
        {
            8: (42.9, 45.9, 44.0, 45.7, 45.9, 52.4),
            16: (61.4, 63.1, 61.9, 64.2, 64.5, 75.8),
            32: (81.8, 82.1, 81.9, 83.3, 82.9, 91.2),
            64: (95.8, 95.8, 95.9, 95.9, 95.9, 96.9),
        },
    ),
    Table(
        "gpt-oss-120b",
        "layer",
        _ALL,
        {
            8: (51.5, 41.7, 51.8, 52.5, 52.1, 66.6),
            16: (65.8, 58.1, 65.8, 66.6, 66.8, 79.8),
            32: (80.3, 76.4, 80.3, 80.1, 80.2, 88.3),
        },
    ),
    Table(
        "qwen3-30b-a3b",
        "global",
        _THREE,
        {
            5: (0.0, 30.2, 32.1),
            6: (37.9, 33.4, 36.0),
            8: (38.0, 39.5, 42.8),
            16: (58.3, 57.4, 62.7),
            32: (82.6, 80.3, 84.1),
        },
    ),
    Table(
        "gpt-oss-120b",
        "global",
        _THREE,
        {2: (18.3, 14.5, 23.5), 4: (31.4, 23.1, 36.6), 8: (51.0, 37.4, 52.4), 16: (64.5, 54.3, 66.7)},
    ),
)
EXTRA = ("lfru", "static", "ewma", ORACLE)
"""Replayed beside what was published."""


def facts(routes: Routes) -> dict[str, Any]:
    """What a recording holds."""
    distinct = routes.distinct()
    return {
        **routes.shape._asdict(),
        "prefill_tokens": routes.num_tokens(is_prefill=True),
        "decode_tokens": routes.num_tokens(is_prefill=False),
        "distinct_per_layer": {
            "mean": round(sum(distinct) / len(distinct), 1),
            "min": min(distinct),
            "max": max(distinct),
        },
        "ceiling": round(100 * ceiling(routes.routes), 1),
    }


def cells(table: Table, routes: Routes) -> Iterator[dict[str, Any]]:
    """One table's replays, row by row; sizes are slots per layer on average."""
    for slots, published in table.rows.items():
        known = dict(zip(table.policies, published, strict=True))
        for policy in dict.fromkeys((*table.policies, *EXTRA)):
            total = slots * routes.shape.layers
            ours = 100 * replay(routes, policy, total, scope=table.scope, rules=EVERY_MISS).decode_hit_rate
            yield {
                "model": table.model,
                "scope": table.scope,
                "slots": slots,
                "policy": policy,
                "ours": round(ours, 2),
                "published": known.get(policy),
                "served": None if policy == ORACLE else _served(routes, policy, total, table.scope),
            }


def _served(routes: Routes, policy: str, total: int, scope: str) -> float:
    """The same with a server's rules: a floor per layer, and misses that are not worth their victim bypass."""
    return round(100 * replay(routes, policy, total, scope=scope, rules=SERVED).decode_hit_rate, 2)


def differs(cell: Mapping[str, Any]) -> bool:
    """Beyond what one decimal can hide."""
    return cell["published"] is not None and abs(round(cell["ours"], 1) - cell["published"]) > WITHIN + 1e-9


def by_size(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per size, ``ours / published`` per policy."""
    lines: dict[int, dict[str, Any]] = {}
    for cell in found:
        known = "" if cell["published"] is None else f" / {cell['published']:.1f}"
        lines.setdefault(cell["slots"], {"slots": cell["slots"]})[cell["policy"]] = (
            f"{cell['ours']:.1f}{known}"
        )
    return list(lines.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=tuple(FILES))
    args = parser.parse_args()
    models = [args.only] if args.only else list(FILES)
    recordings = {name: read_routes(args.data / "experts" / FILES[name]) for name in models}
    found: list[dict[str, Any]] = []
    for table in TABLES:
        if table.model in recordings:
            rows = list(cells(table, recordings[table.model]))
            found += rows
            show(f"{table.model}, {table.scope}: decode hits %, ours / published", by_size(rows))
    odd = [cell for cell in found if differs(cell)]
    known = sum(cell["published"] is not None for cell in found)
    print(f"{known - len(odd)} of {known} published cells are met within {WITHIN} points")
    for cell in odd:
        print("differs:", cell)
    result = {
        "what": "decode hit rates in per cent of caches on recorded routing; replayed, not measured",
        "rules": {
            "ours": "caches start empty, run through the prompt; every miss is admitted; no floor",
            "served": "as a server: a floor per layer; with a global scope misses not worth their victim bypass",
            "slots": "per layer; with a global scope their mean",
            "order": "token by token through the prompt; of equally recent experts the lowest id goes first",
        },
        "recordings": {name: facts(routes) for name, routes in recordings.items()},
        "within": WITHIN,
        "published_cells": known,
        "met": known - len(odd),
        "differs": odd,
        "cells": found,
    }
    save(args.json, result)


if __name__ == "__main__":
    main()
