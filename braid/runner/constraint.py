"""Outputs held to a grammar: which tokens may come next, known by the time the logits are.

The grammar of a request moves on as soon as its token is chosen, in a thread of its own, while the next forward pass
runs. A mask that is still missing when the logits are there costs the others nothing: the request's token is deferred,
and computed again in the next step.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from braid.core.errors import BraidError
from braid.core.faults import Faults
from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec

PATIENCE = 0.002
"""Seconds that a step with other requests waits for masks."""
PATIENCE_ALONE = 0.05
"""Seconds that a step waits in which nobody else computes anything: computing it again would take longer."""
MAX_RUNNING = 1.0
"""Seconds that one mask may run; its request fails, and another thread takes over the others."""
MAX_DEFERRAL = 2.0
"""Seconds that one token may be deferred."""
STACK = 128 << 20
"""Bytes of stack of a thread that runs grammars (address space; only what is used becomes memory)."""
GRACE, PER_TOKEN = 0.25, 0.005
"""Processor seconds that a request's masks may use: so many at once, and so many for each token."""


class Matcher(Protocol):
    """How far one output has come in its grammar."""

    def allowed(self) -> bytes:
        """One bit per token id, the lowest bit first: may it come next? Ids beyond the end may not.

        Raises:
            BraidError: the grammar cannot be followed here.
        """
        ...

    def consume(self, token_id: int) -> None:
        """The output goes on with this token. Raises as ``allowed``."""
        ...


Start = Callable[[], Matcher]


_STACK_SIZE = threading.Lock()
"""The size of new stacks belongs to the process: two lanes that start threads must not take turns in setting it."""


class Worker(Protocol):
    """Runs jobs one after the other, elsewhere."""

    def submit(self, job: Callable[[], None], cost: float = 0.0) -> None:
        """Queue a job. Those that are likely to ``cost`` least go first, equal ones in order."""
        ...

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when ``done()`` or when the time is up."""
        ...

    def replace(self) -> None:
        """Give up on the job that runs now; go on with the next."""
        ...

    def close(self) -> None: ...


_Queued = tuple[float, int, Callable[[], None] | None]
"""Numbers are unique, so that no two jobs are compared."""


class ThreadWorker:
    """A worker with one daemon thread, started with the first job."""

    def __init__(self) -> None:
        self._jobs: queue.PriorityQueue[_Queued] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._generation = 0

    def submit(self, job: Callable[[], None], cost: float = 0.0) -> None:
        if self._thread is None:
            self.replace()
        self._jobs.put((cost, next(self._numbers), job))

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(done, seconds)

    def replace(self) -> None:
        self._thread = deep_thread(self._serve, "masks")

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put((-1.0, next(self._numbers), None))
            self._thread.join(MAX_RUNNING)

    def _serve(self) -> None:
        self._generation += 1
        generation = self._generation
        while self._generation == generation:
            _, _, job = self._jobs.get()
            if job is None:
                return
            job()
            with self._changed:
                self._changed.notify_all()


def deep_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread, started, with a stack that grammars of deeply nested rules do not overflow."""
    with _STACK_SIZE:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


@dataclass(slots=True, eq=False)
class _Track:
    """One request's way through its grammar. The worker alone touches ``matcher``.

    ``mask_V`` is for the token after ``num_tokens`` output tokens: True where a token is forbidden (so is what is
    beyond its end).
    """

    params: SamplingParams
    start: Start | None
    matcher: Matcher | None = None
    num_tokens: int = 0
    mask_V: Tensor | None = None
    error: str | None = None
    ended: bool = False
    running_since: float | None = None
    deferred_since: float | None = None
    spent: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds that a mask of this grammar takes in the mean: those of cheap ones need not wait for dear ones."""
        return self.spent / (self.num_tokens + 1)

    @property
    def is_ready(self) -> bool:
        return self.mask_V is not None or self.error is not None


class Masks:
    """The grammars of all requests that have one.

    ``begin``, ``end`` and ``close`` may be called from any thread; ``collect`` and ``advance`` of a request belong to
    the lane that computes it.

    Args:
        device: where the logits are.
        worker: what computes the masks.
        clock: seconds, monotonic.
        faults: what tests let go wrong in here.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        worker: Worker | None = None,
        clock: Callable[[], float] = time.monotonic,
        faults: Faults | None = None,
    ) -> None:
        self._follow = (faults or Faults()).around("mask", self._next_mask, _phase)
        self._device = device
        self._worker: Worker = worker or ThreadWorker()
        self._clock = clock
        self._tracks: dict[str, _Track] = {}

    def __len__(self) -> int:
        """Requests that are being followed."""
        return len(self._tracks)

    def begin(self, request_id: str, params: SamplingParams, start: Start) -> None:
        """Follow a new request, whose ``params`` every one of its specs will carry."""
        track = self._tracks[request_id] = _Track(params, start)
        self._worker.submit(lambda: self._compute(track, None))

    def end(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        track = self._tracks.pop(request_id, None)
        if track is not None:
            track.ended = True

    def close(self) -> None:
        """Forget everything and stop the worker."""
        for request_id in list(self._tracks):
            self.end(request_id)
        self._worker.close()

    def collect(
        self, wanted: Sequence[tuple[str, SampleSpec]], *, alone: bool
    ) -> list[Tensor | BraidError | None]:
        """What each request may not choose: a mask_V (True is forbidden), None if it is late, or its error.

        Args:
            alone: nobody else is in this step.
        """
        tracks = [self._tracks.get(request_id) for request_id, _ in wanted]
        known = [track for track in tracks if track is not None]
        if not all(track.is_ready for track in known):
            patience = PATIENCE_ALONE if alone else PATIENCE
            self._worker.wait(lambda: all(track.is_ready for track in known), patience)
        now = self._clock()
        return [self._verdict(track, spec, now) for track, (_, spec) in zip(tracks, wanted, strict=True)]

    def _verdict(self, track: _Track | None, spec: SampleSpec, now: float) -> Tensor | BraidError | None:
        position = len(spec.token_ids) - spec.num_prompt_tokens
        if track is None or track.params is not spec.params or track.num_tokens != position:
            return BraidError("the request's grammar was lost")
        if track.error is not None:
            return BraidError(track.error)
        if track.mask_V is not None:
            track.deferred_since = None
            return track.mask_V
        return self._late(track, now)

    def _late(self, track: _Track, now: float) -> BraidError | None:
        since = track.running_since
        if since is not None and now - since > MAX_RUNNING:
            self._worker.replace()
            return BraidError(_too_slow(track))
        if track.deferred_since is None:
            track.deferred_since = now
        return BraidError(_too_slow(track)) if now - track.deferred_since > MAX_DEFERRAL else None

    def advance(self, request_id: str, token_id: int) -> None:
        """The request got this token: begin with the mask for the one after it."""
        track = self._tracks.get(request_id)
        if track is None:
            return
        track.mask_V = None
        track.num_tokens += 1
        self._worker.submit(lambda: self._compute(track, token_id), track.cost)

    def _compute(self, track: _Track, token_id: int | None) -> None:
        """Runs in the worker. Never raises: what goes wrong is this request's error."""
        if track.ended or track.error is not None:
            return
        begin = time.thread_time()
        track.running_since = self._clock()
        try:
            mask_V = self._follow(track, token_id)
        except BraidError as error:
            track.error = str(error)
        except BaseException as error:  # a panic of the grammar library is no Exception
            track.error = f"the grammar of {_param(track)} failed: {error}"
        else:
            track.spent += time.thread_time() - begin
            if track.spent > GRACE + PER_TOKEN * track.num_tokens:
                track.error = _too_slow(track)
            track.mask_V = mask_V
        track.running_since = None

    def _next_mask(self, track: _Track, token_id: int | None) -> Tensor:
        if track.start is not None:
            track.matcher, track.start = track.start(), None
        assert track.matcher is not None
        if token_id is not None:
            track.matcher.consume(token_id)
        return self._forbidden(track.matcher.allowed())

    def _forbidden(self, allowed: bytes) -> Tensor:
        bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")
        return torch.from_numpy(bits == 0).to(self._device)


def _phase(track: _Track, token_id: int | None) -> str:
    return "start" if token_id is None else "step"


def _param(track: _Track) -> str:
    constraint = track.params.constraint
    return "the constraint" if constraint is None else constraint.param


def _too_slow(track: _Track) -> str:
    return (
        f"{_param(track)} takes too long to follow after {track.num_tokens} tokens; "
        "use a simpler schema or an unambiguous grammar"
    )
