"""One engine in one process: the loop on its own thread, requests in, deltas out."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from braid.core.constraint import Constraint
from braid.core.errors import BraidError, EngineDeadError, InvalidParameterError
from braid.core.faults import Faults
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta, Request
from braid.engine.agent_log import AgentLog
from braid.engine.grammar import Grammar, Grammars
from braid.engine.heartbeat import Pulse
from braid.engine.memory_split import MemorySplit
from braid.engine.protocol import EngineInfo, EngineStats, GenerateRequest, LaneStats
from braid.policy.agents.program import Finish
from braid.runner.experts.store import ExpertStore
from braid.runner.runner import Runner
from braid.sched.loop import Loop
from braid.sched.scheduler import Scheduler

logger = logging.getLogger(__name__)

OnDelta = Callable[[Delta], None]
OnError = Callable[[BraidError], None]


class _Sink(NamedTuple):
    on_delta: OnDelta
    on_error: OnError


class EngineCore:
    """Owns a scheduler, its runner and the loop thread.

    Callbacks run on the loop thread and must return at once.

    Args:
        eos_token_ids: tokens that end a request unless it asks to ignore them.
        seed: seeds the streams of requests that bring no seed of their own.
        grammars: compiles constraints; None refuses them.
        agent_log: the scheduler's observer, closed with the engine.
        experts: the store that the model computes its experts with, closed with the engine.
        split: moves memory between that store and KV.
        faults: what tests let go wrong in here.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: EngineInfo,
        *,
        eos_token_ids: frozenset[int],
        seed: int = 0,
        grammars: Grammars | None = None,
        agent_log: AgentLog | None = None,
        experts: ExpertStore | None = None,
        split: MemorySplit | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.info = info
        self.runner = runner
        self._scheduler = scheduler
        self._eos_token_ids = eos_token_ids
        self._seeds = itertools.count(seed)
        self._grammars = grammars
        self._agent_log = agent_log
        self._experts, self._split = experts, split
        self._compiling: dict[str, Future[Grammar]] = {}
        self._sinks: dict[str, _Sink] = {}
        self._take_in = (faults or Faults()).around("admit", self._add, _kind)
        self._stopping = False
        self._failure: BaseException | None = None
        checks = [part.check_integrity for part in (experts, split) if part is not None]
        before_plan = (lambda now: None) if split is None else split.turn
        self._loop = Loop(scheduler, runner, self._deliver, checks, before_plan)
        self._thread = threading.Thread(target=self._serve, name="engine-loop", daemon=True)
        self._on_failure: Callable[[BaseException], None] = lambda error: None
        self.on_step: Callable[[], None] = lambda: None
        """Called on the loop thread when all deltas of a step have been handed out."""

    @property
    def is_alive(self) -> bool:
        """True while requests are served."""
        return self._thread.is_alive() and self._failure is None and not self._stopping

    def start(self, on_failure: Callable[[BaseException], None] | None = None) -> None:
        """Begin to serve; ``on_failure`` hears of a fault that ends the loop."""
        if on_failure is not None:
            self._on_failure = on_failure
        self._thread.start()

    def submit(self, request: GenerateRequest, on_delta: OnDelta, on_error: OnError) -> None:
        """Queue a request; a refusal goes to ``on_error``. Safe from any thread.

        Raises:
            EngineDeadError: the loop has ended.
        """
        self._require_alive()
        sink = _Sink(on_delta, on_error)
        added = self._loop.post(lambda scheduler, now: self._take_in(request, sink, now))
        added.add_done_callback(lambda future: _report(future, on_error))

    def abort(self, request_id: str) -> None:
        """End a request; unknown or finished ids are ignored. Safe from any thread."""
        if self.is_alive:
            self._loop.post(lambda scheduler, now: self._abort(request_id, now))

    def stats(self) -> Future[EngineStats]:
        """Gauges and counters, taken between two steps."""
        self._require_alive()
        return self._loop.post(lambda scheduler, now: self._stats())

    def _stats(self) -> EngineStats:
        lanes = {lane: LaneStats(*state) for lane, state in self.runner.lane_states().items()}
        experts = None if self._experts is None else self._experts.stats()
        stats = self._scheduler.stats()
        if self._split is not None:
            stats = stats._replace(policy_state={**stats.policy_state, **self._split.describe()})
        return EngineStats(**stats._asdict(), lanes=lanes, experts=experts)

    def pulse(self) -> Future[Pulse]:
        """A sign of life of the loop and of its lanes."""
        self._require_alive()
        return self._loop.post(lambda scheduler, now: self._pulse())

    def _pulse(self) -> Pulse:
        times = self.runner.times
        return Pulse({lane: times[lane].progress for lane in sorted(self._loop.computing)})

    def program(
        self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None
    ) -> Future[Outcome]:
        """Act on what is kept for a program, between two steps. Safe from any thread.

        Raises:
            EngineDeadError: the loop has ended.
        """
        self._require_alive()
        return self._loop.post(lambda scheduler, now: scheduler.program(verb, program, seconds, now))

    def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        """How a program's latest turn has ended; nobody waits for it. Safe from any thread."""
        if self.is_alive:
            self._loop.post(lambda scheduler, now: scheduler.told(program, finish, tool, now))

    def programs(self, owner: str | None, limit: int) -> Future[list[ProgramInfo]]:
        """The latest programs of ``owner`` (of all if None), at most ``limit``. Safe from any thread.

        Raises:
            EngineDeadError: the loop has ended.
        """
        self._require_alive()
        return self._loop.post(lambda scheduler, now: scheduler.programs(owner, limit, now))

    def close(self) -> None:
        """Stop after the step in flight; unfinished requests get an error."""
        if self._stopping:
            return
        self._stopping = True
        self.runner.wake()
        if self._thread.is_alive():
            self._thread.join()
        self.runner.close()
        if self._experts is not None:
            self._experts.close()
        self._fail_all(EngineDeadError("the engine was closed"))
        if self._grammars is not None:
            self._grammars.close()
        if self._agent_log is not None:
            self._agent_log.close()

    def _require_alive(self) -> None:
        if self._failure is not None or self._stopping:
            raise EngineDeadError(f"the engine is not running: {self._failure or 'closed'}")

    def _serve(self) -> None:
        try:
            self._loop.run(lambda: self._stopping)
            self._loop.close(EngineDeadError("the engine was closed"))
        except BaseException as error:
            logger.exception("the engine loop ended")
            self._failure = error
            self._fail_all(EngineDeadError(f"the engine failed: {error}"))
            self._on_failure(error)

    def _fail_all(self, error: BraidError) -> None:
        self._compiling.clear()
        sinks, self._sinks = self._sinks, {}
        for request_id, sink in sinks.items():
            try:
                sink.on_error(error)
            except Exception:
                logger.exception("nobody hears that request %s failed", request_id)

    def _add(self, wanted: GenerateRequest, sink: _Sink, now: float) -> None:
        self._check(wanted)
        constraint = wanted.params.constraint
        if constraint is None or wanted.pooling is not None:
            self._scheduler.add(self._admit(wanted, now), now)
        else:
            self._compile(wanted, constraint, now)
        self._sinks[wanted.request_id] = sink

    def _compile(self, wanted: GenerateRequest, constraint: Constraint, arrived: float) -> None:
        """Keep a request back until its grammar is ready; ``_enter`` goes on with it."""
        if self._grammars is None:
            raise InvalidParameterError(
                "this engine enforces no constraints; it was built without a tokenizer",
                param=constraint.param,
            )
        owner = "" if wanted.program is None else wanted.program.owner
        grammar = self._grammars.compile(constraint, owner)
        self._compiling[wanted.request_id] = grammar
        grammar.add_done_callback(
            lambda done: self._loop.post(lambda scheduler, now: self._enter(wanted, done, arrived, now))
        )

    def _enter(self, wanted: GenerateRequest, grammar: Future[Grammar], arrived: float, now: float) -> None:
        """Admit a request whose grammar is ready, or refuse it; it may have been aborted meanwhile."""
        request_id = wanted.request_id
        if self._compiling.get(request_id) is not grammar:
            return
        del self._compiling[request_id]
        sink = self._sinks[request_id]
        try:
            start = grammar.result().start
            self._scheduler.add(self._admit(wanted, arrived), now)
        except Exception as error:
            del self._sinks[request_id]
            sink.on_error(_refusal(error))
        else:
            self.runner.masks.begin(request_id, wanted.params, start)

    def _check(self, wanted: GenerateRequest) -> None:
        if wanted.request_id in self._sinks:
            raise InvalidParameterError(
                f"request id {wanted.request_id!r} is already running", param="request_id"
            )
        if not wanted.prompt_token_ids:
            raise InvalidParameterError("the prompt must have at least one token", param="prompt")
        self._check_pooling(wanted)
        vocab_size = self.info.vocab_size
        for param, ids in (
            ("prompt", wanted.prompt_token_ids),
            ("stop_token_ids", wanted.params.stop_token_ids),
            ("logit_bias", tuple(wanted.params.logit_bias)),
        ):
            wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
            if wrong is not None:
                raise InvalidParameterError(
                    f"{param} has token id {wrong}; the vocabulary is [0, {vocab_size})", param=param
                )

    def _check_pooling(self, wanted: GenerateRequest) -> None:
        pooling = wanted.pooling
        if pooling is None:
            return
        if self.info.pooling is None:
            raise InvalidParameterError(
                f"{self.info.model} makes no embeddings as it was started; start it with --pooling last or "
                "--pooling mean, whichever the model was trained for",
                param="model",
            )
        if pooling not in ("last", "mean"):
            raise InvalidParameterError(f"pooling must be last or mean, got {pooling!r}", param="pooling")
        if wanted.params.prompt_logprobs is not None:
            raise InvalidParameterError("an embedding has no prompt_logprobs", param="prompt_logprobs")

    def _admit(self, wanted: GenerateRequest, now: float) -> Request:
        seed = wanted.params.seed
        return Request(
            request_id=wanted.request_id,
            prompt_token_ids=tuple(wanted.prompt_token_ids),
            params=wanted.params,
            arrival_time=now,
            eos_token_ids=self._eos_token_ids,
            seed=next(self._seeds) if seed is None else seed,
            priority=wanted.priority,
            cache_salt=wanted.cache_salt,
            program=wanted.program,
            intent=wanted.intent,
            pooling=wanted.pooling,
            slo=wanted.slo,
        )

    def _abort(self, request_id: str, now: float) -> None:
        if self._sinks.pop(request_id, None) is not None:
            compiling = self._compiling.pop(request_id, None)
            if compiling is not None:
                compiling.cancel()
            self._scheduler.abort(request_id, now)
            self.runner.masks.end(request_id)

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            sink = self._sinks.get(delta.request_id)
            if sink is None:
                continue
            if delta.finish_reason is not None:
                del self._sinks[delta.request_id]
                self.runner.masks.end(delta.request_id)
            try:
                sink.on_delta(delta)
            except Exception:  # a listener that went away (a closed event loop) ends its own request only
                logger.exception("nobody takes the output of request %s", delta.request_id)
                self._abort(delta.request_id, self.runner.now())
        self.on_step()


def _kind(wanted: GenerateRequest, sink: _Sink, now: float) -> str:
    if wanted.pooling is not None:
        return "embedding"
    return "text" if wanted.params.constraint is None else "constraint"


def _report(added: Future[None], on_error: OnError) -> None:
    """Tell the caller of ``submit`` why a request was not admitted."""
    error = added.exception()
    if error is not None:
        on_error(_refusal(error))


def _refusal(error: BaseException) -> BraidError:
    """What to tell the caller of a request that was not admitted."""
    if isinstance(error, BraidError):
        return error
    logger.error("a request could not be admitted", exc_info=error)
    return BraidError(f"the request could not be admitted: {error!r}")
