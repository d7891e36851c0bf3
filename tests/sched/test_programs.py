"""What is remembered of programs, and that nobody can make it grow or push others out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from braid.policy.agents.program import Program, ProgramId
from braid.sched.programs import ProgramTable, num_shared


def chain(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def a(program: str) -> ProgramId:
    return ProgramId("a", program)


def record(
    table: ProgramTable, program_id: ProgramId, keys: list[bytes], now: float = 0.0
) -> tuple[bytes, ...]:
    """A turn comes and leaves ``keys``; those that nobody has any more."""
    program, _ = table.meet(program_id, None, now)
    return table.record(program, keys)[0]


def known(table: ProgramTable, program_id: ProgramId) -> Program:
    program = table.get(program_id)
    assert program is not None
    return program


def test_the_latest_turn_is_remembered() -> None:
    table = ProgramTable(100)
    record(table, a("p"), chain("1", "2"), 1.0)
    record(table, a("p"), chain("1", "2", "3"), 2.0)
    program = known(table, a("p"))
    assert (program.keys, program.first_arrival) == ((b"1", b"2", b"3"), 1.0)
    assert table.get(ProgramId("b", "p")) is None
    table.check_integrity()


def test_what_programs_share_is_nobodys_own() -> None:
    table = ProgramTable(100)
    record(table, a("p"), chain("1", "2", "3"), 0.0)
    record(table, a("q"), chain("1", "2", "4"), 0.0)
    p, q = known(table, a("p")), known(table, a("q"))
    assert table.num_shared_keys == 2
    assert table.unshared(p) == (b"3",)
    assert table.unshared(q) == (b"4",)
    assert table.forget(q) == (b"4",)
    assert table.unshared(p) == (b"1", b"2", b"3")
    assert table.forget(q) == ()
    table.check_integrity()


def test_a_turn_that_diverges_replaces_the_old_end() -> None:
    table = ProgramTable(100)
    record(table, a("p"), chain("1", "2", "3"), 0.0)
    record(table, a("q"), chain("1", "2", "3"), 0.0)
    assert record(table, a("p"), chain("1", "5"), 1.0) == ()
    assert table.unshared(known(table, a("q"))) == (b"2", b"3")
    assert record(table, a("q"), chain("6"), 2.0) == (b"2", b"3")
    table.check_integrity()


def test_the_owner_of_most_programs_loses_its_oldest() -> None:
    table = ProgramTable(100, max_programs=3)
    record(table, ProgramId("b", "quiet"), chain("1"), 0.0)
    for index in range(5):
        record(table, a(str(index)), chain(f"a{index}"), 1.0)
    assert len(table) == 3
    assert table.get(ProgramId("b", "quiet")) is not None
    assert [table.get(a(str(index))) is not None for index in range(5)] == [False, False, False, True, True]


def test_the_owner_of_most_keys_makes_room() -> None:
    table = ProgramTable(6)
    record(table, ProgramId("b", "quiet"), chain("1"), 0.0)
    record(table, a("long"), chain("2", "3", "4", "5"), 0.0)
    record(table, a("next"), chain("6", "7"), 0.0)
    assert table.get(ProgramId("b", "quiet")) is not None
    assert table.get(a("long")) is None
    table.check_integrity()


turns = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from("pqrs"),
        st.lists(st.sampled_from("xy"), max_size=6),
        st.booleans(),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(turns=turns)
def test_counts_are_those_of_the_entries(turns: list[tuple[str, str, list[str], bool]]) -> None:
    table = ProgramTable(12, max_programs=4)
    for owner, name, tokens, forget in turns:
        program_id = ProgramId(owner, name)
        keys = ["".join(tokens[: index + 1]).encode() for index in range(len(tokens))]
        record(table, program_id, keys)
        table.check_integrity()
        if forget and (program := table.get(program_id)) is not None:
            table.forget(program)
            table.check_integrity()


@given(st.text("xy", max_size=8), st.text("xy", max_size=8))
def test_how_far_two_chains_agree(one: str, other: str) -> None:
    chains = [[text[: index + 1].encode() for index in range(len(text))] for text in (one, other)]
    agreed = num_shared(*chains)
    assert chains[0][:agreed] == chains[1][:agreed]
    assert agreed == min(map(len, chains)) or chains[0][agreed] != chains[1][agreed]


def test_a_parent_counts_if_it_was_here_before() -> None:
    table = ProgramTable(100)
    child, _ = table.meet(a("c"), a("p"), 1.0)
    parent, _ = table.meet(a("p"), a("c"), 2.0)
    later, _ = table.meet(a("d"), a("p"), 3.0)
    assert child.parent is None
    assert parent.parent is child
    assert later.parent is parent
    assert later.seniority == 1.0


def test_idle_programs_are_found_at_last() -> None:
    table = ProgramTable(100)
    for index in range(4):
        table.meet(a(str(index)), None, float(index))
    known(table, a("0")).num_running = 1
    found = set()
    for _ in range(8):
        found |= {program.id for program in table.idle_since(2.0, 1)}
        for program_id in found:
            if program_id is not None and (program := table.get(program_id)) is not None:
                table.forget(program)
    assert found == {a("1"), a("2")}


def test_whoever_is_used_is_the_last_to_go() -> None:
    table = ProgramTable(100, max_programs=3)
    for index in range(3):
        table.meet(ProgramId(f"owner-{index % 2}", str(index)), None, float(index))
    oldest = known(table, ProgramId("owner-0", "0"))
    oldest.last_active = 9.0
    table.touch(oldest)
    table.touch(Program(ProgramId("owner-0", "0"), 0.0))
    assert [program.id for program in table.idle_since(5.0, 9)] == [
        ProgramId("owner-1", "1"),
        ProgramId("owner-0", "2"),
    ]
    table.meet(ProgramId("owner-0", "3"), None, 9.0)
    assert table.get(ProgramId("owner-0", "2")) is None
    table.check_integrity()


def test_idle_programs_are_looked_for_among_a_few_only() -> None:
    table = ProgramTable(100)
    for index in range(50):
        program, _ = table.meet(ProgramId(str(index % 7), str(index)), None, float(index))
        program.num_waiting = index % 2
    found: list[Program] = []
    for _ in range(10):
        latest = table.idle_since(100.0, 5)
        assert len(latest) <= 5
        found += latest
        for program in latest:
            table.forget(program)
    assert len(found) == 25
    assert all(program.is_idle for program in found)
    table.check_integrity()
