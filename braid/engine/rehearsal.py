"""A process in which every constraint is compiled first, because it may hang or crash there without harm.

llguidance's limits do not bound everything: a chain of some thousand rules overflows the stack, and a few hundred
intersections of regular expressions take hours. Nothing but a process boundary stops either. What has passed here, with
less time, memory and stack than the engine gives it, is compiled again in the engine.

The other half of this module is that process: ``python -m braid.engine.rehearsal``. It reads one JSON object per line
from its standard input (first the vocabulary's outline, then constraints) and answers each with one line. It ends with
its input, and by itself where one constraint uses up its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import BraidError
from braid.engine.guidance import GrammarError, Vocabulary, compile_constraint, make_tokenizer, refusal

SECONDS = 2.0
"""Until a constraint is given up, however busy the machine."""
CPU_SECONDS = 1.0
"""Processor time for one constraint; the engine needs as much again, so that both fit into two seconds."""
START_SECONDS = 30.0
"""A new process imports llguidance; on a loaded machine that takes a while."""
MEMORY = 1 << 30
STACK = 64 << 20
"""Half of what the engine's threads have (``braid.runner.constraint.STACK``)."""
NICENESS = 5
"""Of this process: streams go first."""


class _Outline(NamedTuple):
    """What of a vocabulary a constraint can name: its size and its special tokens."""

    size: int
    special: dict[int, str]
    end: list[int]


def outline(vocabulary: Vocabulary) -> _Outline:
    """The part of a vocabulary that the rehearsal needs."""
    ids = sorted(vocabulary.special | vocabulary.end)
    names = {id: vocabulary.tokens[id].decode("utf-8", "replace") for id in ids}
    return _Outline(len(vocabulary.tokens), names, sorted(vocabulary.end))


class Rehearsal:
    """Runs the process, and replaces it after each death. Belongs to one thread, but for ``close``."""

    def __init__(self, vocabulary: Vocabulary, *, seconds: float = SECONDS) -> None:
        self._outline = outline(vocabulary)
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._closed = False

    def check(self, constraint: Constraint) -> None:
        """Compile a constraint where it can do no harm.

        Raises:
            InvalidParameterError: it cannot be compiled, or not within the time, memory and stack.
            BraidError: the process cannot be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._start()
        answer = self._ask({"kind": constraint.kind.value, "source": constraint.source}, self._seconds)
        if answer is None:
            self._kill()
            raise refusal(constraint, "it takes too much time, memory or nesting to compile")
        reason = answer["reason"]
        if reason is not None:
            raise refusal(constraint, reason)

    def close(self) -> None:
        """End the process; what is being checked is refused."""
        self._closed = True
        self._kill()

    def _start(self) -> None:
        if self._closed:
            raise BraidError("the engine was closed")
        command = [sys.executable, "-m", "braid.engine.rehearsal"]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, self._lines), name="rehearsal", daemon=True).start()
        if self._ask(self._outline._asdict(), START_SECONDS) is None:
            self._kill()
            raise BraidError(
                "constraints cannot be compiled now: the process that checks them does not start"
            )

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer; None if the process died, said anything else, or the time is up: it is not asked again then."""
        process = self._process
        if process is None or process.stdin is None:
            return None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = self._lines.get(timeout=seconds)
            answer: dict[str, Any] | None = json.loads(line) if line else None
        except (OSError, ValueError, queue.Empty):
            return None
        return answer if isinstance(answer, dict) and "reason" in answer else None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # what was left unwritten has no reader
                process.stdin.close()


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on what a process says; an empty line stands for its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(b"")


# -- in the process ----------------------------------------------------------------------------------------


def main() -> None:
    """Serve on a thread with a stack of a known size."""
    _confine()
    threading.stack_size(STACK)
    thread = threading.Thread(target=_serve, daemon=True)
    thread.start()
    thread.join()


def _confine() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # not every system bounds memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.nice(NICENESS)


def _serve() -> None:
    tokenizer = make_tokenizer(_rebuild(json.loads(sys.stdin.readline())))
    _say({"reason": None})
    for line in sys.stdin:
        wanted = json.loads(line)
        constraint = Constraint(kind=ConstraintKind(wanted["kind"]), source=wanted["source"])
        _budget(CPU_SECONDS)
        try:
            compile_constraint(tokenizer, constraint)
        except GrammarError as error:
            reason: str | None = str(error)
        else:
            reason = None
        _budget(0)
        _say({"reason": reason})


def _budget(seconds: float) -> None:
    """End this process after so much processor time, even in the middle of a foreign call; 0 for never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _rebuild(said: dict[str, Any]) -> Vocabulary:
    """A vocabulary of single bytes with the real one's size and special tokens."""
    special = {int(id): name.encode() for id, name in said["special"].items()}
    tokens = [special.get(id, b"") for id in range(said["size"])]
    plain = (id for id in range(said["size"]) if id not in special)
    for byte, id in zip(range(256), plain, strict=False):
        tokens[id] = bytes([byte])
    return Vocabulary(tokens, frozenset(special), frozenset(said["end"]), lambda text: [])


if __name__ == "__main__":
    main()
