from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.lab.readers import read_trace
from braid.lab.readers.draft import with_turns
from braid.lab.replay.planning.graph import Graph, graph_of
from braid.lab.replay.planning.rewire import capped, subset, without
from braid.lab.table import conform


def _graph(*rows: dict[str, Any], quantum_s: float = 0.0) -> Graph:
    return graph_of(conform(pl.DataFrame(rows, infer_schema_length=None)), quantum_s)


def _waits(graph: Graph) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for row, before in zip(graph.waiter.tolist(), graph.awaited.tolist(), strict=True):
        found.setdefault(row, set()).add(before)
    return found


def _call(program: str | None, t: float, e2e: float | None = None, **more: Any) -> dict[str, Any]:
    return {"program_id": program, "t_s": t, "e2e_s": e2e, **more}


def test_a_turn_waits_for_the_one_before_and_the_recorded_gap() -> None:
    graph = _graph(_call("a", 0, 2), _call("b", 1, 1), _call("a", 5, 2), _call(None, 6, 1), _call("a", 17, 1))
    assert _waits(graph) == {2: {0}, 4: {2}}
    assert graph.delay_s.tolist() == [0, 0, 3, 0, 10]
    assert graph.group.tolist() == [0, 1, 0, 2, 0]


def test_overlapping_calls_stay_overlapping_and_are_waited_for_together() -> None:
    # One call, then two at once, then one after both; the last of the two to end came first.
    graph = _graph(_call("a", 0, 1), _call("a", 2, 9), _call("a", 3, 2), _call("a", 12, 1))
    assert _waits(graph) == {1: {0}, 2: {0}, 3: {1, 2}}
    assert graph.delay_s.tolist() == [0, 1, 2, 1]


def test_negative_gaps_are_overlap() -> None:
    frame = with_turns(pl.DataFrame([_call("a", 0, 1), _call("a", 2, 9), _call("a", 3, 2)]))
    assert frame["gap_before_s"].to_list() == [None, 1, -8]
    graph = graph_of(conform(frame))
    assert _waits(graph) == {1: {0}, 2: {0}}
    assert graph.delay_s.tolist() == [0, 1, 2]


def test_times_on_a_grid_are_compared_with_its_tolerance() -> None:
    rows = _call("a", 0, 2.4), _call("a", 2, 1), _call("a", 8, 1)
    assert _waits(_graph(*rows, quantum_s=1.0)) == {1: {0}, 2: {1}}
    assert _graph(*rows, quantum_s=1.0).delay_s.tolist() == [0, 0, 5]
    assert _waits(_graph(*rows)) == {2: {0, 1}}


def test_gaps_alone_make_a_chain() -> None:
    rows = [
        {"program_id": "a", "turn": turn, "gap_before_s": gap} for turn, gap in enumerate((0.7, 3.0, 5.5))
    ]
    graph = _graph(*rows)
    assert _waits(graph) == {1: {0}, 2: {1}}
    assert graph.delay_s.tolist() == [0, 3, 5.5]
    assert not graph.clocked.any()
    assert not graph.recorded.any()


def test_a_negative_gap_without_times_is_overlap_too() -> None:
    turns = [
        {"program_id": "a", "turn": k, "gap_before_s": gap} for k, gap in enumerate((0.0, 2.0, -4.0, 1.0))
    ]
    assert _waits(_graph(*turns)) == {1: {0}, 2: {0}, 3: {2}}


def test_the_source_s_gap_counts_where_times_are_coarse() -> None:
    graph = _graph(
        _call("a", 0, 5.57, gap_before_s=0.0), _call("a", 12, 4.3, gap_before_s=7.0), quantum_s=1.0
    )
    assert graph.delay_s.tolist() == [0, 7]


def test_an_unknown_end_makes_a_delay_from_start_to_start() -> None:
    graph = _graph(_call("a", 0), _call("a", 9))
    assert graph.delay_s.tolist() == [0, 9]
    assert graph.whole_steps.tolist() == [False, True]
    known = _graph(_call("a", 0), _call("a", 9, gap_before_s=4.0))
    assert known.delay_s.tolist() == [0, 4]
    assert not known.whole_steps.any()
    assert known.end_s.tolist() == [5, 9]


def test_rows_without_time_and_gap_follow_at_once() -> None:
    graph = _graph({"program_id": "a", "turn": 0}, {"program_id": "a", "turn": 1})
    assert _waits(graph) == {1: {0}}
    assert graph.loose.tolist() == [False, True]


def _turn(program: str, t: float, took: float, began: float | None = 0.0, **more: Any) -> dict[str, Any]:
    names = {"program_id": program, "parent_id": program.rpartition(".")[0] or None}
    return {**names, "t_program_s": t, "starts_at_s": began, "e2e_s": took, **more}


def test_sub_agents_hang_on_the_turn_that_had_ended_and_the_parent_waits_for_those_that_had() -> None:
    graph = _graph(
        _turn("r", 0, 5),
        _turn("r.quick", 0, 2, began=10.0),
        _turn("r.quick", 6, 4, began=10.0),
        _turn("r.slow", 0, 60, began=12.0),
        _turn("r", 24, 6),
        _turn("r", 100, 1),
    )
    assert _waits(graph) == {1: {0}, 2: {1}, 3: {0}, 4: {2}, 5: {3, 4}}
    assert graph.delay_s.tolist() == [0, 5, 4, 7, 4, 28]
    assert graph.begin_s.tolist() == [0, 10, 16, 12, 24, 100]
    assert set(graph.group.tolist()) == {0}
    assert not graph.adrift.any()
    assert graph.recorded.all()


def test_a_sub_agent_of_a_sub_agent_does_not_start_before_its_parent() -> None:
    graph = _graph(
        _turn("r", 0, 5), _turn("r.a", 0, 50, began=10.0), _turn("r.a.b", 0, 5, began=3.0), _turn("r", 90, 1)
    )
    assert _waits(graph) == {1: {0}, 2: {0}, 3: {1, 2}}
    assert graph.begin_s.tolist() == [0, 10, 13, 90]
    assert graph.delay_s.tolist() == [0, 5, 8, 30]


def test_a_sub_agent_that_started_before_any_turn_had_ended_waits_for_nothing() -> None:
    graph = _graph(_turn("r", 0, 50), _turn("r.a", 0, 5, began=2.0), _turn("r", 60, 1))
    assert _waits(graph) == {2: {0, 1}}
    assert graph.begin_s.tolist() == [0, 2, 60]


def test_a_sub_agent_without_a_start_begins_at_the_end_of_the_turn_before_it_in_the_file() -> None:
    graph = _graph(
        _turn("r.first", 0, 1, began=None),
        _turn("r", 0, 5, began=None),
        _turn("r.a", 0, 8, began=None),
        _turn("r", 20, 1, began=None),
    )
    assert _waits(graph) == {2: {1}, 3: {0, 2}}
    assert graph.begin_s.tolist() == [0, 0, 5, 20]
    assert graph.delay_s.tolist() == [0, 0, 0, 7]
    assert graph.adrift.tolist() == [True, False, True, False]


def test_parents_in_a_ring_or_absent_do_no_harm() -> None:
    rows = [{"program_id": name, "parent_id": above, "t_s": 1.0} for name, above in (("a", "b"), ("b", "a"))]
    assert _graph(*rows).group.tolist() == [0, 0]
    assert _graph({"program_id": "a", "parent_id": "gone", "t_s": 1.0}).group.tolist() == [0]
    assert _graph({"program_id": "a", "parent_id": "a", "t_s": 1.0}).group.tolist() == [0]


def test_what_is_left_out_is_bridged_and_gaps_add_up() -> None:
    graph = _graph(_call("a", 0, 1), _call("a", 4, 10), _call("a", 20, 1), _call("a", 22, 1))
    assert graph.delay_s.tolist() == [0, 3, 6, 1]
    bridged = without(graph, np.array([False, True, True, False]))
    assert _waits(bridged) == {3: {0}}
    assert bridged.delay_s[3] == 3 + 6 + 1
    headless = without(graph, np.array([True, False, False, False]))
    assert _waits(headless) == {2: {1}, 3: {2}}
    assert headless.delay_s[1] == 0


def test_only_the_last_to_end_of_several_adds_its_gap() -> None:
    graph = _graph(_call("a", 0, 1), _call("a", 2, 9), _call("a", 3, 2), _call("a", 12, 1))
    assert without(graph, np.array([False, False, True, False])).delay_s[3] == 1
    late = without(graph, np.array([False, True, False, False]))
    assert _waits(late)[3] == {0, 2}
    assert late.delay_s[3] == 1 + 1


def test_a_cap_on_gaps_moves_what_follows() -> None:
    graph = _graph(_call("a", 0, 1), _call("a", 101, 2), _call("a", 104, 1), _call(None, 300, 1))
    short = capped(graph, 10.0)
    assert short.delay_s.tolist() == [0, 10, 1, 0]
    assert short.begin_s.tolist() == [0, 11, 14, 300]


def test_a_subset_keeps_whole_groups() -> None:
    graph = _graph(_call("a", 0, 1), _call("b", 1, 1), _call(None, 2, 1), _call("b", 5, 1), _call("a", 6, 1))
    part = subset(graph, np.array([1, 2, 3]))
    assert part.group.tolist() == [0, 1, 0]
    assert _waits(part) == {2: {0}}
    assert sorted(part.rank.tolist()) == [0, 1, 2]


@st.composite
def _frames(draw: st.DrawFn) -> pl.DataFrame:
    """Anything a reader could hand over: times or none, parents of any kind, missing and negative numbers."""
    names = st.sampled_from(["a", "b", "c", "d", None])
    number = st.one_of(st.none(), st.integers(0, 30).map(float))
    gap = st.one_of(st.none(), st.integers(-10, 30).map(float))
    timed, own = draw(st.booleans()), draw(st.booleans())
    above = {name: draw(names) for name in "abcd"}
    rows = []
    for _ in range(draw(st.integers(1, 14))):
        program = draw(names)
        row = {
            "program_id": program,
            "parent_id": above.get(program or ""),
            "e2e_s": draw(number),
            "gap_before_s": draw(gap),
        }
        row |= {"t_s": draw(st.integers(0, 40).map(float)) if timed else None}
        row |= {"t_program_s": draw(number), "starts_at_s": draw(number)} if own else {}
        rows.append(row)
    return conform(pl.DataFrame(rows, infer_schema_length=None))


@settings(max_examples=40, deadline=None)
@given(_frames(), st.sampled_from([0.0, 1.0, 5.0]), st.randoms(use_true_random=False))
def test_every_graph_can_be_played(frame: pl.DataFrame, quantum_s: float, random: Any) -> None:
    graph = graph_of(frame, quantum_s)
    gone = np.array([random.random() < 0.3 for _ in range(frame.height)])
    for each in (graph, without(graph, gone), capped(graph, 3.0), capped(without(graph, gone), 3.0)):
        assert sorted(each.rank.tolist()) == list(range(frame.height))
        assert (each.rank[each.awaited] < each.rank[each.waiter]).all()
        assert (each.group[each.awaited] == each.group[each.waiter]).all()
        assert (each.begin_s[each.awaited] <= each.begin_s[each.waiter]).all()
        assert (each.delay_s >= 0).all()
        assert np.isfinite(each.delay_s).all()
        assert (each.end_s >= each.begin_s).all()
        waits = set(each.waiter.tolist())
        assert all(row in waits or each.delay_s[row] == 0 for row in range(frame.height))
    left = without(graph, gone)
    assert not gone[left.waiter].any()
    assert not gone[left.awaited].any()
    for program in frame["program_id"].drop_nulls().unique():
        assert (
            len(set(graph.group[(frame["program_id"] == program).fill_null(False).to_numpy()].tolist())) == 1
        )


def test_real_agents(shared_data: Any) -> None:
    trace = read_trace(shared_data / "agents" / "weka_requests.csv.gz")
    graph = graph_of(trace.frame, trace.info.t_quantum_s)
    sessions = trace.frame["session"].n_unique()
    assert graph.group.max() + 1 == sessions
    waits = np.bincount(graph.waiter, minlength=trace.frame.height) > 0
    # Nearly all are chains: one start for each session.
    assert sessions <= (~waits).sum() <= sessions * 1.02
    assert (graph.rank[graph.awaited] < graph.rank[graph.waiter]).all()


def test_a_real_session_with_sub_agents(shared_data: Any) -> None:
    trace = read_trace(shared_data / "agents" / "weka_raw" / "trace_0277.json.gz")
    graph, frame = graph_of(trace.frame, trace.info.t_quantum_s), trace.frame
    last: dict[str, int] = {}
    first: dict[str, int] = {}
    for row, name in enumerate(frame["program_id"].str.split("/").list.last().to_list()):
        last[name] = row
        first.setdefault(name, row)
    root = [row for row in range(frame.height) if frame["parent_id"][row] is None]
    waits = _waits(graph)
    # Three sub-agents start in the root's first pause; one has ended before its second turn, one before its seventh.
    assert [waits[first[f"root.agent_00{k}"]] for k in (1, 2, 3)] == [{root[0]}] * 3
    assert waits[root[1]] == {last["root.agent_001"]}
    assert waits[root[6]] == {root[5], last["root.agent_002"]}
    assert graph.delay_s[root[1]] == pytest.approx(228 - 79.224 - 19 - 36.89)
