"""Constraints to grammars: compiled off the loop, once for all requests that share one, within bounds.

A constraint passes a rehearsal in a process of its own (``braid.engine.rehearsal``), then it is compiled here. Whatever
it does, the loop's thread only ever waits for a future.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from braid.core.constraint import Constraint
from braid.core.errors import BraidError, EngineDeadError, InvalidParameterError, OverloadedError
from braid.core.faults import Faults
from braid.engine import guidance
from braid.engine.guidance import GrammarError, Vocabulary
from braid.engine.rehearsal import NICENESS, Rehearsal
from braid.runner.constraint import deep_thread

if TYPE_CHECKING:
    import llguidance
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

CACHE_BYTES = 64 << 20
MAX_QUEUED = 64
"""Constraints that wait to be compiled; more are turned away."""
OWN_SHARE = 4
"""One part in so many of them may be one owner's, where requests have owners."""
_ENTRY_BYTES = 128 << 10
_BYTES_PER_SOURCE_BYTE = 128
_CLASS_BYTES = 1 << 20
_UNICODE_CLASS = re.compile(r"\\[pPwWsSdD]")


class GrammarMatcher:
    """One output's place in a grammar: llguidance's matcher with errors as exceptions, and only ids that exist."""

    def __init__(self, matcher: llguidance.LLMatcher, real: NDArray[np.uint8], param: str) -> None:
        self._matcher = matcher
        self._real = real
        self._param = param

    def allowed(self) -> bytes:
        """See ``braid.runner.constraint.Matcher``. Lets other threads run meanwhile."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return (bits[: len(self._real)] & self._real[: len(bits)]).tobytes()

    def consume(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BraidError(
                f"the output cannot go on as {self._param} demands: the grammar became too complex or has no way on"
            )


class Grammar:
    """A compiled constraint; every request that uses it has a matcher of its own."""

    def __init__(self, matcher: llguidance.LLMatcher, real: NDArray[np.uint8], param: str) -> None:
        self._matcher = matcher
        self._real = real
        self._param = param

    def start(self) -> GrammarMatcher:
        """A matcher at the beginning of an output. One thread at a time."""
        return GrammarMatcher(self._matcher.deep_copy(), self._real, self._param)


class GrammarCache:
    """The most recently used grammars, as many as fit into ``max_bytes`` by ``estimate_bytes``."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[bytes, tuple[Grammar, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Grammar | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, grammar: Grammar, num_bytes: int) -> None:
        """Keep a new grammar, unless it is larger than the whole cache, or there already."""
        if num_bytes > self.max_bytes or key in self._entries:
            return
        self._entries[key] = (grammar, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.num_bytes -= freed


def estimate_bytes(constraint: Constraint) -> int:
    """What a compiled constraint holds in memory, rather too much than too little.

    Measured (resident memory of 20 to 100 grammars each, llguidance 1.9.1): 30 to 100 kB for anything small; 20 to 95
    bytes per byte of a schema or a Lark grammar; and 0.5 to 1.2 MB more where a Unicode class such as ``\\w`` occurs.
    """
    size = _ENTRY_BYTES + _BYTES_PER_SOURCE_BYTE * len(constraint.source.encode())
    return size + _CLASS_BYTES if _UNICODE_CLASS.search(constraint.source) else size


class _Job:
    """One constraint to be compiled, and everyone who waits for it."""

    def __init__(self, owner: str, key: bytes, constraint: Constraint) -> None:
        self.owner = owner
        self.key = key
        self.constraint = constraint
        self.waiting: list[Future[Grammar]] = []

    @property
    def place(self) -> tuple[str, bytes]:
        return self.owner, self.key


class _Queue:
    """Jobs of the same owner one after the other, the owners in turn: nobody waits for all of another's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[_Job]] = {}
        self._closed = False

    def put(self, job: _Job) -> None:
        with self._changed:
            self._waiting.setdefault(job.owner, deque()).append(job)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> _Job | None:
        """Waits for a job; None once the queue was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            owner = next(iter(self._waiting))
            jobs = self._waiting.pop(owner)
            job = jobs.popleft()
            if jobs:
                self._waiting[owner] = jobs
            return job


class Grammars:
    """Compiles constraints on a thread of its own, which the first one starts.

    Args:
        load: reads the model's vocabulary; called on that thread, once.
        cache_bytes: bound of the grammars that are kept beyond the requests that use them.
        faults: what tests let go wrong in here.
    """

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        *,
        cache_bytes: int = CACHE_BYTES,
        faults: Faults | None = None,
    ) -> None:
        self._faults = faults or Faults()
        self.cache = GrammarCache(cache_bytes)
        self._load = load
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._queue = _Queue()
        self._thread: threading.Thread | None = None
        self._rehearsal: Rehearsal | None = None
        self._closed = False

    def compile(self, constraint: Constraint, owner: str = "") -> Future[Grammar]:
        """The grammar of a constraint, now or later. Cancel the future to lose interest. Safe from any thread.

        The future raises InvalidParameterError where the constraint cannot be enforced.

        Args:
            owner: whose request it is; owners take turns.

        Raises:
            InvalidParameterError: llguidance is not installed.
            OverloadedError: too many constraints wait to be compiled, or too many of this owner.
        """
        guidance.require(constraint.param)
        future: Future[Grammar] = Future()
        key = _key(constraint)
        with self._lock:
            if self._closed:
                raise EngineDeadError("the engine was closed")
            known = self.cache.get(key)
            if known is None:
                self._enqueue(_Job(owner, key, constraint)).waiting.append(future)
                return future
        _settle(future, known)
        return future

    def close(self) -> None:
        """Stop; whoever waits is told."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
            rehearsal, thread = self._rehearsal, self._thread
        for job in jobs:
            self._finish(job, EngineDeadError("the engine was closed"))
        if rehearsal is not None:
            rehearsal.close()
        if thread is not None:
            self._queue.close()
            thread.join()

    def _enqueue(self, job: _Job) -> _Job:
        """The job, or the one like it that waits already."""
        known = self._jobs.get(job.place)
        if known is not None:
            return known
        own = sum(other.owner == job.owner for other in self._jobs.values()) if job.owner else 0
        if len(self._jobs) >= MAX_QUEUED or own >= MAX_QUEUED // OWN_SHARE:
            raise OverloadedError(
                f"{own or len(self._jobs)} constraints wait to be compiled, try again later"
            )
        self._jobs[job.place] = job
        if self._thread is None:
            self._thread = deep_thread(self._serve, "grammars")
        self._queue.put(job)
        return job

    def _serve(self) -> None:
        _step_back()
        compiler: _Compiler | None = None
        while (job := self._queue.get()) is not None:
            if not self._is_wanted(job):
                continue
            try:
                if compiler is None:
                    compiler = _Compiler(self._load())
                    with self._lock:
                        self._rehearsal = compiler.rehearsal
                    if self._closed:
                        compiler.rehearsal.close()
                compile = self._faults.around("compile", compiler.compile)
                outcome: Grammar | BraidError = compile(job.constraint)
            except BraidError as error:
                outcome = error
            except BaseException as error:  # a panic of the grammar library is no Exception
                logger.exception("a constraint could not be compiled")
                outcome = BraidError(f"the constraint could not be compiled: {type(error).__name__}")
            self._finish(job, outcome)

    def _is_wanted(self, job: _Job) -> bool:
        """False, and the job is forgotten, if all who waited have gone."""
        with self._lock:
            if self._jobs.get(job.place) is job and not all(future.cancelled() for future in job.waiting):
                return True
            if self._jobs.get(job.place) is job:
                del self._jobs[job.place]
            return False

    def _finish(self, job: _Job, outcome: Grammar | BraidError) -> None:
        with self._lock:
            if self._jobs.get(job.place) is job:
                del self._jobs[job.place]
            waiting, job.waiting = job.waiting, []
            if isinstance(outcome, Grammar):
                self.cache.put(job.key, outcome, estimate_bytes(job.constraint))
        for future in waiting:
            _settle(future, outcome)


class _Compiler:
    """The parts that need the vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.end:
            raise InvalidParameterError("this model has no end token, which structured output needs")
        self.rehearsal = Rehearsal(vocabulary)
        self._tokenizer = guidance.make_tokenizer(vocabulary)
        named = vocabulary.special | vocabulary.end
        real = [bool(token) or id in named for id, token in enumerate(vocabulary.tokens)]
        self._real = np.packbits(real, bitorder="little")

    def compile(self, constraint: Constraint) -> Grammar:
        self.rehearsal.check(constraint)
        try:
            matcher = guidance.compile_constraint(self._tokenizer, constraint)
        except GrammarError as error:
            raise guidance.refusal(constraint, str(error)) from None
        return Grammar(matcher, self._real, constraint.param)


def _step_back() -> None:
    """Let the threads that serve streams go first, where a thread can have a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _key(constraint: Constraint) -> bytes:
    text = f"{constraint.kind}\n{constraint.param}\n{constraint.source}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _settle(future: Future[Grammar], outcome: Grammar | BraidError) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Grammar):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
