"""One short name for what a turn goes off to do: programs wait about as long for the same tool.

A structured call is named by its tool. A shell's command is named by the first program that it runs, as all commands
go through one tool. (Continuum, arXiv 2511.02230, takes the first word, so that ``cd x && pytest`` is ``cd``; Braid's
baselines get this key too, and where a command begins with its program the two are the same.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_KEY = 64
"""Characters of one name."""
MAX_NAMES = 8
"""Parallel calls that are named; the others are many, too."""
MAX_COMMAND = 4096
"""Characters of a command, and of a call's arguments, that are looked at."""
FENCES = ("bash", "mswea_bash_command")
"""What a fenced block to be run is called; answers for people show ``sh`` and ``shell`` as well."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHELLS = _words(
    "bash shell sh zsh terminal execute_bash run_command execute_command run_shell_command "
    "exec_command local_shell shell_command run_in_terminal"
)
_ARGUMENTS = ("command", "cmd", "script", "code", "input")
_NO_PROGRAMS = _words("cd pushd popd export set unset source . : alias shopt ulimit umask local declare")
_KEYWORDS = _words("if then elif else while until do ! { command builtin exec nohup setsid")
"""The program comes after these; ``for``, ``case`` and ``function`` begin a clause of their own instead."""
_CLAUSES = _words("for case function select done fi esac }")
_WRAPPERS = {
    "sudo": "ughpCrtTUDR",
    "doas": "uC",
    "env": "uCS",
    "nice": "n",
    "ionice": "cnp",
    "timeout": "sk",
    "stdbuf": "ioe",
    "xargs": "nPILd",
    "time": "fo",
}
"""Programs that run another one, with the letters of their options that take a word."""
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_DURATION = re.compile(r"[0-9.]+[smhd]?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:-]*")
_PLAIN = re.compile(r"[^\s'\"\\$`;&|()<>#]+")


class ToolCall(NamedTuple):
    """A call that a reply makes; ``arguments`` may have been cut."""

    name: str
    arguments: str


def calls_key(calls: Sequence[ToolCall]) -> str | None:
    """One key for the calls of a turn: their names, sorted, as parallel calls make one gap; None without any."""
    names = sorted({key for call in calls[:MAX_NAMES] if (key := _call_key(call))})
    return "+".join(names) or None


def fence_key(text: str) -> str | None:
    """The key of a text with exactly one fenced block that is to be run; None of others."""
    command = fenced_command(text)
    return None if command is None else (program_of(command) or FENCES[0])


def fenced_command(text: str) -> str | None:
    """What stands in the only fenced ``bash`` block of a text; None if there is none, several, or no end of it."""
    found: list[str] = []
    block: list[str] | None = None
    is_wanted = False
    for line in text.splitlines():
        mark = line.strip()
        if not mark.startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block, is_wanted = [], mark[3:].strip() in FENCES
        elif mark == "```":
            found += ["\n".join(block)] if is_wanted else []
            block = None
    return found[0] if len(found) == 1 and found[0].strip() else None


def program_of(command: str | Sequence[object]) -> str | None:
    """The first program that a shell command runs and that is not ``cd`` or its like; None where that is not plain.

    The work is linear in the length, whatever stands there.
    """
    if not isinstance(command, str):
        return _program_of_words([word for word in command if isinstance(word, str)][:64])
    first = None
    for words in _simple_commands(command[:MAX_COMMAND]):
        name = _program(words)
        if name is None:
            continue
        if name not in _NO_PROGRAMS:
            return name
        first = first or name
    return first


def _call_key(call: ToolCall) -> str | None:
    if call.name.lower() in _SHELLS:
        command = _command(call.arguments)
        name = None if command is None else program_of(command)
        if name is not None:
            return name
    return _clean(call.name)


def _command(arguments: str) -> str | Sequence[object] | None:
    """What a shell tool is to run: a text, or a list of words."""
    if len(arguments) > MAX_COMMAND:
        return _cut_command(arguments)
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    values = [given.get(name) for name in _ARGUMENTS] if isinstance(given, dict) else [given]
    return next((value for value in values if isinstance(value, (str, list)) and value), None)


def _cut_command(arguments: str) -> str | None:
    """The beginning of the command in arguments that are too long to be read as a whole."""
    found = re.search(r'"(?:' + "|".join(_ARGUMENTS) + r')"\s*:\s*"', arguments[:MAX_COMMAND])
    if found is None:
        return None
    begin = arguments[found.end() : MAX_COMMAND]
    return begin.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")


def _program_of_words(words: list[str]) -> str | None:
    """``["bash", "-lc", "cd x && pytest"]`` and its like are a command in a shell; other lists are words."""
    if len(words) >= 3 and _base(words[0]) in _SHELLS and re.fullmatch(r"-[a-z]*c", words[1]):
        return program_of(words[2])
    return _program(words)


def _program(words: Sequence[str]) -> str | None:
    """The program of one simple command, behind what only prepares it."""
    options = ""
    skip = in_wrapper = False
    for word in words:
        if skip:
            skip = False
        elif in_wrapper and word.startswith("-"):
            skip = len(word) == 2 and word[1] in options
        elif _ASSIGNMENT.match(word) or (in_wrapper and _DURATION.fullmatch(word)) or word in _KEYWORDS:
            continue
        elif word in _CLAUSES:
            return None
        elif (name := _base(word)) in _WRAPPERS:
            options, in_wrapper = _WRAPPERS[name], True
        else:
            return name if name in _NO_PROGRAMS else _clean(name)
    return None


def _base(word: str) -> str:
    return word.rstrip("/").rpartition("/")[2] or word


def _clean(name: str) -> str | None:
    """A name as a key: none of what is not plain, as it may hold anything."""
    return name if len(name) <= MAX_KEY and _NAME.fullmatch(name) else None


def _simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command, without quotes, redirections and comments. Substitutions make a word
    unreadable (it ends up as no plain name) but not what follows it."""
    words: list[str] = []
    target = False
    for token in _tokens(text):
        if token.is_word:
            if not target:
                words.append(token.text)
            target = False
        elif token.text in "<>":
            target = True
        else:
            target = False
            if words:
                yield words
            words = []
    if words:
        yield words


class _Token(NamedTuple):
    text: str
    is_word: bool


def _tokens(text: str) -> Iterator[_Token]:
    """Words, and the signs between them: ``<`` and ``>`` for redirections, ``;`` for whatever ends a command."""
    at, size = 0, len(text)
    while at < size:
        char = text[at]
        if char in "\n;&|()":
            yield _Token(";", False)
            at += 1
        elif char in "<>":
            at = _skip_redirection(text, at)
            yield _Token(char, False)
        elif char.isspace():
            at += 1
        elif char == "#":
            at = _find(text, "\n", at)
        else:
            word, at = _word(text, at)
            if not (word.isdecimal() and at < size and text[at] in "<>"):
                yield _Token(word, True)


def _skip_redirection(text: str, at: int) -> int:
    while at < len(text) and text[at] in "<>&|-":
        at += 1
    return at


def _word(text: str, at: int) -> tuple[str, int]:
    """A word from ``at`` on, without its quotes, and where it ends."""
    pieces: list[str] = []
    while at < len(text):
        char = text[at]
        if char.isspace() or char in ";&|()<>":
            break
        if char in "'\"":
            end = _find(text, char, at + 1)
            pieces.append(text[at + 1 : end])
            at = end + 1
        elif char == "\\":
            pieces.append(text[at + 1 : at + 2].strip("\n"))
            at += 2
        elif char == "`" or text.startswith("$(", at):
            at = _find(text, "`", at + 1) + 1 if char == "`" else _closing(text, at + 2)
            pieces.append("$")
        elif char in "$#":
            pieces.append(char)
            at += 1
        else:
            plain = _PLAIN.match(text, at)
            assert plain is not None, "every other character is plain"
            pieces.append(plain[0])
            at = plain.end()
    return "".join(pieces), at


def _find(text: str, char: str, at: int) -> int:
    """Where ``char`` comes next; the end if it does not."""
    found = text.find(char, at)
    return len(text) if found < 0 else found


def _closing(text: str, at: int) -> int:
    """Behind the bracket that closes a substitution whose content begins at ``at``."""
    depth = 1
    while at < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at


def joined(keys: Iterable[str | None]) -> str | None:
    """One key for several outputs of a turn."""
    names = {name for key in keys if key for name in key.split("+")}
    return "+".join(sorted(names)[:MAX_NAMES]) or None
