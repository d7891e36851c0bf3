"""The published tables of caches of experts, as the benchmark of that name met them."""

from __future__ import annotations

import json
from pathlib import Path

import expert_caches
import pytest

from braid.core.experts import ExpertShape
from braid.sim.experts.routes import Route, Routes

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "expert-caches.json"


def test_every_published_number_is_met() -> None:
    cells = json.loads(RESULT.read_text())["cells"]
    ours = {(cell["model"], cell["scope"], cell["slots"], cell["policy"]): cell["ours"] for cell in cells}
    count = 0
    for table in expert_caches.TABLES:
        for slots, numbers in table.rows.items():
            for policy, published in zip(table.policies, numbers, strict=True):
                assert ours[table.model, table.scope, slots, policy] == pytest.approx(published, abs=0.1)
                count += 1
            mrs, lru = (ours[table.model, table.scope, slots, policy] for policy in ("mrs", "lru"))
            assert mrs >= lru - 2
            assert mrs > 0, "no cliff below one cycle"
    assert count == 69


def test_a_cell_that_differs_is_told() -> None:
    cell = {"ours": 42.16, "published": 42.0}
    assert expert_caches.differs(cell)
    assert not expert_caches.differs(cell | {"ours": 42.14})
    assert not expert_caches.differs(cell | {"published": None})


def test_cells_of_a_small_recording() -> None:
    experts = [0, 1, 0, 2, 0]
    told = Routes(
        shape=ExpertShape(1, 4, 1),
        routes=tuple(Route(0, step, 0, False, (expert,), ()) for step, expert in enumerate(experts)),
    )
    table = expert_caches.Table("tiny", "global", ("lru",), {2: (40.0,)})
    found = {cell["policy"]: cell for cell in expert_caches.cells(table, told)}
    assert found["lru"]["ours"] == 40
    assert found["belady"]["served"] is None
    lines = expert_caches.by_size(list(found.values()))
    assert lines[0]["lru"] == "40.0 / 40.0"
    assert lines[0]["belady"] == "40.0"
