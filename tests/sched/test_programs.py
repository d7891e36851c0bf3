"""What is remembered of programs, and that nobody can make it grow or push others out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from braid.sched.programs import ProgramId, ProgramTable


def chain(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def a(program: str) -> ProgramId:
    return ProgramId("a", program)


def test_the_latest_turn_is_remembered() -> None:
    table = ProgramTable(100)
    table.record(a("p"), chain("1", "2"), 33, 1.0)
    table.record(a("p"), chain("1", "2", "3"), 49, 2.0)
    program = table.get(a("p"))
    assert program is not None
    assert (program.keys, program.num_turns, program.num_tokens, program.last_time) == (
        (b"1", b"2", b"3"),
        2,
        49,
        2.0,
    )
    assert table.get(ProgramId("b", "p")) is None
    table.check_integrity()


def test_what_programs_share_is_nobodys_own() -> None:
    table = ProgramTable(100)
    table.record(a("p"), chain("1", "2", "3"), 48, 0.0)
    table.record(a("q"), chain("1", "2", "4"), 48, 0.0)
    p, q = table.get(a("p")), table.get(a("q"))
    assert p is not None
    assert q is not None
    assert table.unshared(p) == (b"3",)
    assert table.forget(a("q")) is q
    assert table.unshared(q) == (b"4",)
    assert table.unshared(p) == (b"1", b"2", b"3")
    assert table.forget(a("q")) is None
    table.check_integrity()


def test_a_turn_that_diverges_replaces_the_old_end() -> None:
    table = ProgramTable(100)
    table.record(a("p"), chain("1", "2", "3"), 48, 0.0)
    table.record(a("q"), chain("1", "2", "3"), 48, 0.0)
    table.record(a("p"), chain("1", "5"), 32, 1.0)
    q = table.get(a("q"))
    assert q is not None
    assert table.unshared(q) == (b"2", b"3")
    table.check_integrity()


def test_the_owner_of_most_programs_loses_its_oldest() -> None:
    table = ProgramTable(100, max_programs=3)
    table.record(ProgramId("b", "quiet"), chain("1"), 16, 0.0)
    for index in range(5):
        table.record(a(str(index)), chain(f"a{index}"), 16, 1.0)
    assert len(table) == 3
    assert table.get(ProgramId("b", "quiet")) is not None
    assert [table.get(a(str(index))) is not None for index in range(5)] == [False, False, False, True, True]


def test_the_owner_of_most_keys_makes_room() -> None:
    table = ProgramTable(6)
    table.record(ProgramId("b", "quiet"), chain("1"), 16, 0.0)
    table.record(a("long"), chain("2", "3", "4", "5"), 64, 0.0)
    table.record(a("next"), chain("6", "7"), 32, 0.0)
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
        table.record(program_id, keys, len(tokens), 0.0)
        table.check_integrity()
        if forget:
            table.forget(program_id)
            table.check_integrity()
