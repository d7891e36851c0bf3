"""The pure parts of the benchmark of experts: what is computed, who is kept, and what numbers are made of runs."""

from __future__ import annotations

import random
from typing import Any

import experts
import experts_work as work
import pytest

from braid.core.experts import ExpertShape
from braid.sim.experts.routes import Route, Routes

SHAPE = ExpertShape(2, 8, 2)


def routes(layers: int = 2) -> Routes:
    """A prompt of three tokens, whose last layer has the last position alone, and an answer of four."""
    shape = ExpertShape(layers, 8, 2)
    found = []
    for step in range(7):
        for layer in range(layers):
            if step < 2 and layer == layers - 1:
                continue
            experts = tuple(shape.id_of(layer, (step + place * 3) % 8) for place in range(2))
            found.append(Route(0, step, layer, step < 3, experts, (0.75, 0.25)))
    return Routes(shape=shape, routes=tuple(found))


def made(name: str, **more: int) -> work.Work:
    recording = work.recording_of(routes(), 2)
    return work.work_of(work.Load(name), recording, 8, **({"warm_up": 1, "steps": 2} | more))


def test_single_pass_is_the_recording() -> None:
    found = made("a1")
    assert [len(rows) for rows in found.prompts[0].rows] == [3, 1]
    assert found.prompts[0].is_prefill
    assert not found.warm_up
    assert [step.rows[0][0].experts for step in found.measured] == [(3, 6), (4, 7), (5, 0), (6, 1)]
    assert found.measured[0].rows[0][0].weights == (0.75, 0.25)


def test_programs_of_a_loop_are_at_different_places() -> None:
    found = made("b2", steps=5)
    assert (len(found.prompts), len(found.warm_up), len(found.measured), len(found.loop)) == (2, 1, 5, 4)
    firsts = [[row.experts[0] for row in step.rows[0]] for step in found.steps[2:]]
    assert firsts == [[3, 5], [4, 6], [5, 3], [6, 4], [3, 5], [4, 6]]


def test_own_labels_are_permutations_and_repeatable() -> None:
    recording = work.recording_of(routes(), 2)
    other = work.relabelled(recording, 8, "0/1")
    assert other == work.relabelled(recording, 8, "0/1")
    assert other != work.relabelled(recording, 8, "0/2")
    for layer in range(2):
        names = {
            old: new
            for one, two in zip(recording.answer, other.answer, strict=True)
            for old, new in zip(_experts(one, layer), _experts(two, layer), strict=True)
        }
        assert len(set(names.values())) == len(names)
    assert other.prompt[0][1] is None
    assert made("c2").steps == made("c2").steps


def _experts(token: work.Token, layer: int) -> tuple[int, ...]:
    choice = token[layer]
    assert choice is not None
    return choice.experts


def test_layers_are_spread_over_the_depth() -> None:
    token = work.recording_of(routes(6), 3).answer[0]
    assert len(token) == 3
    deep = work.recording_of(
        Routes(
            shape=ExpertShape(6, 8, 1),
            routes=tuple(
                Route(0, step, layer, step == 0, (layer * 8 + layer,), ())
                for step in (0, 1)
                for layer in range(6)
            ),
        ),
        3,
    )
    assert [_experts(deep.answer[0], layer) for layer in range(3)] == [(0,), (2,), (4,)]
    with pytest.raises(ValueError, match="has 2 layers, not 3"):
        work.recording_of(routes(), 3)


def test_recordings_survive_writing() -> None:
    recording = work.recording_of(routes(), 2)
    assert work.read_back(work.written(recording)) == recording


@pytest.mark.parametrize("name", ["a2", "c", "d1", "c0", ""])
def test_unknown_loads_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not known"):
        work.Load(name)


def test_oracle_is_as_right_as_published() -> None:
    row, chance = work.Choice(tuple(range(6)), (1.0,) * 6), random.Random(0)
    told = [work.foretold([row], 128, chance)[0].experts for _ in range(400)]
    assert all(len(set(experts)) == 6 for experts in told)
    right = sum(expert < 6 for experts in told for expert in experts) / 2400
    assert right == pytest.approx(work.PRECISION, abs=0.02)


def test_most_used_counts_the_loop() -> None:
    found = made("a1")
    uses = work.Counter(
        expert for step in found.loop for layer in range(2) for expert in step.loads(SHAPE, layer)
    )
    best = work.most_used(found, SHAPE, 5)
    assert len(best) == 5
    assert min(uses[expert] for expert in best) >= max(uses[expert] for expert in uses if expert not in best)


def test_belady_counts_measured_steps_alone() -> None:
    found = made("a1")
    all_fit = work.belady(found, SHAPE, 16)
    assert all_fit.wanted == 4 * 2 * 2
    before = {expert for layer in range(2) for expert in found.prompts[0].loads(SHAPE, layer)}
    news = {
        expert for step in found.measured for layer in range(2) for expert in step.loads(SHAPE, layer)
    } - before
    assert all_fit.wanted - all_fit.hits == len(news)
    assert work.belady(found, SHAPE, 4).hits <= all_fit.hits


def test_slots_leave_room_for_staging() -> None:
    assert work.slots_for(1000, 100, 8) == 2
    assert work.slots_for(100, 100, 8) == 0


def run(contender: str, wall_s: float, **more: Any) -> dict[str, Any]:
    return {
        "load": "c4",
        "budget": 25,
        "contender": contender,
        "wall_s": wall_s,
        "tokens": 10,
        "step_s": [wall_s],
        "read_bytes": 1e9,
        "compute_s": None,
        "stall_s": None,
        "disk": [{"1": 1e9, "2": 2e9}, {"1": 1e9, "2": 2e9}],
    } | more


def test_rows() -> None:
    runs = [
        run("ours", 1.0, compute_s=0.4, stall_s=0.5, hits=3, wanted=4),
        run("ours", 2.0, compute_s=0.4, stall_s=1.5, hits=3, wanted=4),
        run("ours", 1.2, compute_s=0.4, stall_s=0.7, hits=3, wanted=4),
        run("mmap", 6.0),
        run("mmap-ahead", 3.0),
        run("static", 0.0) | {"wall_s": 2.4, "compute_s": 0.4, "stall_s": 0.0},
        {"load": "c4", "budget": 25, "contender": "lru-serial", "failed": "killed"},
        run("resident", 0.5, compute_s=0.4, stall_s=0.0, read_bytes=0, budget=100),
    ]
    rows = {row["contender"]: row for row in work.rows_of(runs)}
    assert list(rows) == ["mmap", "mmap-ahead", "static", "ours", "resident"]
    ours, mapped = rows["ours"], rows["mmap"]
    assert (ours["ms/token"], ours["low"], ours["high"]) == pytest.approx((120, 100, 200))
    assert (ours["compute"], ours["stall"], ours["hit %"]) == pytest.approx((40, 70, 75))
    assert (ours["x mmap"], ours["x static"]) == pytest.approx((2.5, 2))
    assert ours["x serial"] == "-"
    assert (ours["MB/token"], ours["tokens/GB"]) == pytest.approx((100, 10))
    assert ours["roofline"] == pytest.approx(50), "100 MB at 2 GB/s, or 50 ms with all resident"
    assert (mapped["compute"], mapped["stall"]) == pytest.approx((50, 550)), "from the floor"
    assert rows["resident"]["tokens/GB"] == "-"


def test_prompts_cold_new_and_again() -> None:
    runs = [run("ours", 1.0) | {"load": "p2", "step_s": [0.4, 0.6, 0.1, 0.3]}, run("ours", 1.0)]
    assert work.prompts_of(runs) == [
        {
            "load": "p2",
            "budget %": 25,
            "contender": "ours",
            "cold ms": pytest.approx(400),
            "new ms": pytest.approx(600),
            "again ms": pytest.approx(200),
        }
    ]


def test_results_that_differ_are_told() -> None:
    runs = [run("ours", 1.0, digests=[1, 2, 3]), run("mmap", 1.0, digests=[1, 2])]
    assert work.differing(runs) == []
    assert work.differing([*runs, run("static", 1.0, digests=[1, 5])]) == ["c4"]


def test_every_contender_has_a_place_and_is_described() -> None:
    assert set(experts.CONTENDERS) <= set(work.ORDER)
    words = (experts.__doc__ or "").split()
    assert [name for name in work.ORDER if name not in words] == []


def test_order_of_contenders_changes() -> None:
    names = ["a", "b", "c"]
    orders = [work.rotated(names, turn) for turn in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == set(names)
    assert {(order[0], order[1]) for order in orders} >= {("a", "b"), ("b", "a")}
