"""What programs say, and the tools that really run."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents_programs import Program, Step, Words
from agents_tools import command_in, cut, run_tool, spoken, write_notes

from braid.text.tool_key import fence_key

PROGRAM = Program("p", 0.0, tuple(Step(50, 30, 0.0) for _ in range(5)))


def test_every_reply_but_the_last_calls_a_tool_that_the_server_knows() -> None:
    keys = [fence_key(spoken(PROGRAM, turn).text) for turn in range(5)]
    assert keys == ["sed", "sort", "grep", "tail", None]
    assert [command_in(spoken(PROGRAM, turn).text) for turn in range(5)] == [
        spoken(PROGRAM, turn).command for turn in range(5)
    ]


def test_two_fences_are_no_call() -> None:
    assert command_in("```bash\nls\n```\n```bash\nls\n```") is None


async def test_a_tool_reads_its_programs_file(tmp_path: Path) -> None:
    write_notes(tmp_path, PROGRAM)
    written = (tmp_path / "notes.txt").read_text().splitlines()
    assert (await run_tool(tmp_path, "sort notes.txt", 0.0)).splitlines() != written
    assert len((await run_tool(tmp_path, "tail -n 80 notes.txt", 0.0)).splitlines()) == 80
    with pytest.raises(RuntimeError, match="ended with"):
        await run_tool(tmp_path, "cat nothing.txt 2>/dev/null", 0.0)


def test_outputs_are_cut_or_padded_to_so_many_words() -> None:
    assert cut("a b c d\ne", 3, Words("x")) == "a b c"
    assert len(cut("a b", 10, Words("x")).split()) == 10
