"""Tools that really run: shell commands on a file of the program's own, after a sleep as long as the recorded gap."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import NamedTuple

from agents_programs import FENCE_TOKENS, Program, Words

LINES, WORDS_PER_LINE = 120, 8
FILE = "notes.txt"
_FENCE = re.compile(r"```bash\n(.*?)\n```", re.DOTALL)
FIRST_TOKENS = 29
"""Of the system prompt and the templates around it and the task, about."""
SYSTEM = "You work with a shell. Answer with one command in a fenced bash block, or with the result."


class Spoken(NamedTuple):
    """What a reply is to be, and the command in it; the last turn's has none."""

    text: str
    command: str | None


def write_notes(folder: Path, program: Program) -> None:
    """The file that the program's commands read."""
    words = Words(program.name, "notes")
    lines = (words.take(WORDS_PER_LINE) for _ in range(LINES))
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def spoken(program: Program, turn: int) -> Spoken:
    """The reply of a turn, as long as the trace's about, the same under every policy."""
    words = Words(program.name, "reply", turn)
    if turn + 1 == len(program.steps):
        return Spoken(f"Done: {words.take(program.steps[turn].out - 3)}", None)
    command = command_of(turn, words.take(1))
    filling = words.take(max(1, program.steps[turn].out - FENCE_TOKENS))
    return Spoken(f"Next {filling}:\n\n```bash\n{command}\n```", command)


def command_of(turn: int, word: str) -> str:
    """Different tools take turns, as agents' do."""
    commands = (
        f"sed -n '{turn + 1},$p' {FILE}",
        f"sort -k {turn % WORDS_PER_LINE + 1} {FILE}",
        f"grep -v {word} {FILE}",
        f"tail -n 80 {FILE}",
    )
    return commands[turn % len(commands)]


def command_in(reply: str) -> str | None:
    """What the reply asks for, as an agent's harness reads it: exactly one fenced bash block."""
    found = _FENCE.findall(reply)
    return found[0] if len(found) == 1 else None


async def run_tool(folder: Path, command: str, gap_s: float) -> str:
    """Sleep for the gap, then run the command in the program's folder; its output.

    Raises:
        RuntimeError: the command failed.
    """
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f"sleep {gap_s:.3f}; {command}", cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command!r} ended with {process.returncode}")
    return output.decode()


def cut(output: str, num_words: int, more: Words) -> str:
    """The first words of a tool's output, as harnesses cut it; padded where it is too short."""
    words = output.split()[:num_words]
    missing = num_words - len(words)
    return " ".join(words) + (f" {more.take(missing)}" if missing else "")
