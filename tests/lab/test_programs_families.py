from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from braid.lab.programs.families import FamilyOptions, families_of, part_of
from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceError, TraceInfo, conform
from braid.policy.agents.program import Finish
from braid.sim.programs import Family, Text


def trace(**columns: object) -> Trace:
    return Trace(conform(pl.DataFrame(columns)), TraceInfo(source="made here", input_scope="full"))


def agents() -> Trace:
    """A program of three turns whose second calls a sub-agent of two, and a program of one turn."""
    return trace(
        program_id=["a", "a", "a.sub", "a.sub", "a", "b"],
        parent_id=[None, None, "a", "a", None, None],
        turn=[0, 1, 0, 1, 2, 0],
        t_s=[0.0, 10.0, 22.0, 26.0, 40.0, 5.0],
        e2e_s=[2.0, 10.0, 2.0, 2.0, 2.0, 2.0],
        gap_before_s=[None, 8.0, None, 2.0, 12.0, None],
        in_tok=[1000, 1500, 600, 900, 2000, 300],
        out_tok=[100, 50, 40, 30, 20, 10],
        finish=["tool", "tool", "tool", "text", "text", None],
        tool=["bash", None, "ls", None, None, None],
    )


def by_name(found: tuple[Family, ...]) -> dict[str, Family]:
    return {family.name: family for family in found}


def test_families_hold_sub_agents_gaps_and_endings() -> None:
    families = by_name(families_of(agents(), FamilyOptions()).families)
    assert set(families) == {"a", "b"}
    family = families["a"]
    assert family.parents == (-1, 0)
    assert [turn.member for turn in family.turns] == [0, 0, 1, 1, 0]
    assert [turn.after for turn in family.turns] == [(), (0,), (1,), (2,), (3,)]
    assert [turn.delay_s for turn in family.turns] == [0.0, 8.0, 2.0, 2.0, 12.0]
    assert [turn.finish for turn in family.turns] == [
        Finish.TOOL,
        Finish.TOOL,
        Finish.TOOL,
        Finish.TEXT,
        Finish.TEXT,
    ]
    assert [turn.tool for turn in family.turns] == ["bash", "tool", "ls", None, None]
    assert families["b"].turns[0].finish is Finish.UNKNOWN


def test_a_prompt_begins_with_the_prompt_and_the_answer_before_it() -> None:
    (family,) = (f for f in families_of(agents(), FamilyOptions()).families if f.name == "a")
    first, second = family.turns[0], family.turns[1]
    told = 1000 + 100
    assert part_of(second.prompt, 0, 1000) == first.prompt
    assert part_of(second.prompt, 1000, told) == first.reply
    assert second.prompt.num_tokens == 1500
    streams = {
        stream for turn in family.turns for text in (turn.prompt, turn.reply) for stream in text.streams
    }
    assert max(streams) < family.num_streams


def test_scale_turns_gaps_and_context_are_cut() -> None:
    cut = families_of(agents(), FamilyOptions(ctx_scale=0.5, max_turns=2, max_gap_s=5.0, max_model_len=600))
    family = by_name(cut.families)["a"]
    assert [turn.prompt.num_tokens for turn in family.turns] == [500, 300, 450]
    assert max(turn.delay_s for turn in family.turns) <= 5.0
    assert any("left out" in note for note in cut.notes)
    assert any(
        "1 of 3 tool calls have no name" in note for note in families_of(agents(), FamilyOptions()).notes
    )


def test_what_cannot_be_played_is_told() -> None:
    with pytest.raises(TraceError, match="names no programs"):
        families_of(trace(t_s=[0.0], in_tok=[5], out_tok=[5]), FamilyOptions())
    with pytest.raises(TraceError, match="no lengths"):
        families_of(trace(program_id=["a"], turn=[0], out_tok=[5], gap_before_s=[0.0]), FamilyOptions())
    with pytest.raises(TraceError, match="max_turns must be at least 1, got 0"):
        families_of(agents(), FamilyOptions(max_turns=0))


def test_a_part_of_a_text_by_hand() -> None:
    text = Text((7, 8, 9), (10, 5, 3))
    assert part_of(text, 0, 18) == text
    assert part_of(text, 4, 12) == Text((7, 8), (6, 2))
    assert part_of(text, 10, 10) == Text((), ())


def test_the_real_coding_agents_become_families(shared_data: Path) -> None:
    found = families_of(
        read_trace(shared_data / "agents" / "weka_requests.csv.gz"),
        FamilyOptions(max_turns=3, ctx_scale=0.25),
    )
    assert len(found.families) > 400
    assert any(len(family.parents) > 1 for family in found.families)
    later = [turn for family in found.families for turn in family.turns if turn.after]
    shared = sum(turn.prompt.streams[0] == 0 for turn in later)
    assert shared > 0.8 * len(later)
