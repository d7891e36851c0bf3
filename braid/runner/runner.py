"""The real executor: one thread per lane, wall clock, real tokens.

What may live here: turning a plan into tensors, running the model, sampling, and the fault wall around both.
Nothing here decides what runs next.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from braid.core.faults import Faults
from braid.core.request import TokenLogprobs
from braid.core.step import Layers, SampledToken, SampleSpec, StepPlan, StepResult, Work
from braid.models.decoder import CausalLM
from braid.runner.batch import build_batch
from braid.runner.constraint import Masks
from braid.runner.graphs import DecodeGraphs
from braid.runner.kv_store import KVStore
from braid.runner.lane import LaneThread
from braid.runner.lower.lane import TierLane
from braid.runner.partition import Partition, SerialPartition
from braid.runner.prompt import pool, score
from braid.runner.replay import DecodeReplay
from braid.runner.sampler import Row, sample, sample_row
from braid.sched.config import COMPUTING, DECODE, MIXED, PREFILL, TIER, TIER_STALL_S

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RunnerTimes:
    """What one lane has done since the start, in steps, layers and seconds by part of a step.

    Written by the lane's thread alone. ``prepare`` turns plans into tensors; ``kernels`` is the model's blocks: native
    kernels alone in a replayed step, the whole forward pass with its Python in an eager one; ``head`` computes logits;
    ``sample`` chooses tokens.
    """

    steps: int = 0
    layers: int = 0
    busy: float = 0.0
    prepare: float = 0.0
    kernels: float = 0.0
    head: float = 0.0
    sample: float = 0.0

    @property
    def progress(self) -> int:
        """While it moves, a step is long and not stuck."""
        return self.steps + self.layers


class LaneState(NamedTuple):
    """A lane at one moment, and what it has done since the start.

    ``units`` are those of the step in flight, 0 without one; ``restarts`` are threads that followed a dead one.
    """

    units: int
    steps: int
    busy_s: float
    restarts: int


class _Here(threading.local):
    """Whose step this thread is at; ``lane`` is None before its first."""

    def __init__(self) -> None:
        self.times = RunnerTimes()
        self.lane: LaneThread | None = None


class _Carry(NamedTuple):
    """What some layers left of one work, for the layers after them."""

    x_ND: Tensor
    residual_ND: Tensor


class _Forward(NamedTuple):
    """What a forward pass left: hidden states, those rows of them that are sampled, and where the KV of each row is.

    After some layers only, ``hidden_TD`` is the residual stream, and ``carried`` by work what the others begin with.
    """

    hidden_TD: Tensor
    sampling_ND: Tensor
    query_start: Sequence[int]
    slot_mapping_T: Tensor
    kernel_seconds: float
    carried: Sequence[_Carry] = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a step brought, by request."""

    tokens: dict[str, SampledToken] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    exhausted: set[str] = field(default_factory=set)
    scores: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    pooled: dict[str, list[float]] = field(default_factory=dict)
    deferred: set[str] = field(default_factory=set)
    carried: dict[str, object] = field(default_factory=dict)


class Runner:
    """Executes plans on one device.

    Args:
        model: weights loaded, on ``device``.
        kv: the one KV store; its blocks are named by the plans.
        masks: the grammars of requests with a constraint, which must begin there before they are planned.
        faults: what tests let go wrong in here.
        tiers: copies blocks to and from the tiers below the device, in a lane of its own.
        is_split: have lanes for prefill and decode too, each with a thread of its own.
        partition: gives each lane its share of the device; None for one lane that has everything.
    """

    def __init__(
        self,
        model: CausalLM,
        kv: KVStore,
        *,
        device: torch.device,
        masks: Masks | None = None,
        faults: Faults | None = None,
        tiers: TierLane | None = None,
        is_split: bool = False,
        partition: Partition | None = None,
    ) -> None:
        faults = faults or Faults()
        partition = partition or SerialPartition(device, torch.get_num_threads())
        self.lanes = (COMPUTING if is_split else (MIXED,)) + (() if tiers is None else (TIER,))
        self.times: Mapping[str, RunnerTimes] = {lane: RunnerTimes() for lane in COMPUTING}
        """By lane: two threads never write the same numbers."""
        self._here = _Here()
        self._units: dict[str, int] = {}
        """Of the steps in flight, by lane."""
        self.masks = masks or Masks(device, faults=faults)
        self._model = model
        self._kv = kv
        is_cpu = device.type == "cpu"
        self._replay: DecodeReplay | DecodeGraphs = (DecodeReplay if is_cpu else DecodeGraphs)(model, kv)
        self._device = device
        self._step_forward = faults.around("forward", self._forward, lambda works, may_replay: _phase(works))
        self._weigh = faults.around("head", self._logits, lambda works, hidden_ND: _phase(works))
        self._choose = faults.around("sample", _choose)
        self._row = faults.around("row", sample_row, _manner)
        self._score = faults.around("score", score)
        self._pool = faults.around("pool", pool)
        for block in model.blocks:
            block.register_forward_hook(self._count_layer)
        self._results: queue.SimpleQueue[StepResult | BaseException | None] = queue.SimpleQueue()
        self._tiers = tiers
        if tiers is not None:
            tiers.tell = self._results.put
        # Mixed steps never run beside those of decodes, which use the same tapes.
        main = self._lane(DECODE if is_split else MIXED, partition)
        self._threads = {MIXED: main}
        if is_split:
            self._threads |= {DECODE: main, PREFILL: self._lane(PREFILL, partition)}
        errands = {lane: self._threads[lane].call for lane in ((PREFILL, DECODE) if is_split else ())}
        self.granted = partition.granted(errands)
        """What the lanes really get of the device, in words."""

    def _lane(self, name: str, partition: Partition) -> LaneThread:
        seat = partition.seat(name)
        return LaneThread(name, lambda plan: self.execute(plan), self._bury, self._results.put, seat)

    def now(self) -> float:
        return time.monotonic()

    def submit(self, plan: StepPlan) -> None:
        if plan.moves:
            assert self._tiers is not None, "there is no tier below the device"
            self._tiers.submit(plan)
        else:
            self._units[plan.lane] = plan.units
            self._threads[plan.lane].submit(plan)

    def reshare(self, lane: str, units: int) -> None:
        """Takes effect with the next layer of the step; recorded decodes end first."""
        self._threads[lane].reshare(units)
        self._units[lane] = units

    def wait(self, until: float | None) -> list[StepResult]:
        if self._tiers is not None:
            self._tiers.watch(TIER_STALL_S - 1)
        timeout = None if until is None else max(0.0, until - self.now())
        try:
            result = self._results.get(timeout=timeout)
        except queue.Empty:
            return []
        if isinstance(result, BaseException):
            raise RuntimeError(f"a lane's thread has ended: {result!r}") from result
        if result is None:
            return []
        self._units.pop(result.lane, None)
        return [result]

    def wake(self) -> None:
        self._results.put(None)

    def close(self) -> None:
        """Stop the lanes after the steps in flight."""
        for thread in set(self._threads.values()):
            thread.close()
        if self._tiers is not None:
            self._tiers.close()
        self.masks.close()

    def lane_states(self) -> dict[str, LaneState]:
        """On the loop's thread: the lanes that compute. One thread may serve two of them."""
        states: dict[str, LaneState] = {}
        for lane, thread in self._threads.items():
            times, units = self.times[lane], self._units.get(lane, 0)
            restarts = 0 if lane == MIXED and len(self._threads) > 1 else thread.num_restarts
            states[lane] = LaneState(units, times.steps, times.busy, restarts)
        return states

    def _bury(self, plan: StepPlan, error: BaseException) -> StepResult:
        """On a lane's thread that ends: errors for all works of its plan, and nothing of theirs left behind."""
        if plan.lane != PREFILL:
            self._replay.clear()  # one may be half recorded
        reason = f"the thread that computed the step has ended: {error!r}"
        for work in plan.works:
            self._clear(work)
        self.times[plan.lane].steps += 1
        errors = {work.request_id: reason for work in plan.works}
        return StepResult(plan.step_id, plan.lane, self.now(), 0.0, {}, errors)

    def _clear(self, work: Work) -> None:
        """What a work may have half written is not to reach the next owner of its blocks; see ``_quarantine``."""
        size, end = self._kv.block_size, work.start + len(work.token_ids)
        slots = [work.block_ids[at // size] * size + at % size for at in range(work.start, end)]
        self._kv.clear(torch.tensor(slots, device=self._device))

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one plan on the calling thread. Never raises: what fails is named in ``errors``."""
        start = self.now()
        times = self._here.times = self.times[plan.lane]
        self._here.lane = self._threads.get(plan.lane)
        try:
            outcome = self._run(plan.works, _Outcome(), may_replay=plan.lane != PREFILL)
        except Exception as error:
            outcome = self._isolate(plan.works, error, may_replay=plan.lane != PREFILL)
        self._move_on(plan.works, outcome)
        duration = self.now() - start
        times.steps += 1
        times.busy += duration
        return StepResult(
            plan.step_id,
            plan.lane,
            start,
            duration,
            outcome.tokens,
            outcome.errors,
            scores=outcome.scores,
            pooled=outcome.pooled,
            deferred=frozenset(outcome.deferred),
            exhausted=frozenset(outcome.exhausted),
            carried=outcome.carried,
        )

    def _count_layer(self, block: nn.Module, inputs: object, output: object) -> None:
        self._here.times.layers += 1
        if self._here.lane is not None:
            self._here.lane.breathe()

    def _isolate(self, works: Sequence[Work], error: Exception, *, may_replay: bool) -> _Outcome:
        """After a failed step, run each work alone: only the guilty request fails, and each takes less memory.

        Running a work again is safe, since it writes the same KV to the same slots.
        """
        if _is_out_of_memory(error):
            self._replay.clear()
        logger.error("a step of %d requests failed (%r); running them one by one", len(works), error)
        outcome = _Outcome()
        for work in works:
            try:
                self._run([work], outcome, may_replay=may_replay)
            except Exception as own:
                logger.exception("request %s failed alone", work.request_id)
                if _is_out_of_memory(own):
                    outcome.exhausted.add(work.request_id)
                    outcome.errors[work.request_id] = "the engine had no memory left for this request"
                else:
                    outcome.errors[work.request_id] = f"the model step failed: {own}"
        return outcome

    def _run(self, works: Sequence[Work], outcome: _Outcome, *, may_replay: bool) -> _Outcome:
        """A forward pass of the works with layers, and one of the others, which are there for the tokens' sake."""
        parts = [work for work in works if work.layers is not None]
        whole = [work for work in works if work.layers is None] if parts else works
        for together in (parts, whole):
            if together:
                self._run_pass(together, outcome, may_replay=may_replay, num_works=len(works))
        return outcome

    def _run_pass(
        self, works: Sequence[Work], outcome: _Outcome, *, may_replay: bool, num_works: int
    ) -> None:
        clock, times = time.perf_counter, self._here.times
        begin = clock()
        step = self._step_forward(works, may_replay)
        forwarded = clock()
        sampling = [(work.request_id, work.sample) for work in works if work.sample is not None]
        logits_NV = self._weigh(works, step.sampling_ND) if sampling else None
        self._answer_prompts(works, step, outcome)
        weighed = clock()
        masks: list[Tensor | None] | None = None
        if logits_NV is not None and any(spec.params.constraint is not None for _, spec in sampling):
            logits_NV, sampling, masks = self._constrain(logits_NV, sampling, num_works, outcome)
        tokens, errors = self._choose(logits_NV, sampling, masks, self._row)
        outcome.tokens.update(tokens)
        outcome.errors.update(errors)
        outcome.errors.update(self._quarantine(works, step))
        outcome.carried.update(zip((work.request_id for work in works), step.carried, strict=False))
        times.prepare += forwarded - begin - step.kernel_seconds
        times.kernels += step.kernel_seconds
        times.head += weighed - forwarded
        times.sample += clock() - weighed

    def _constrain(
        self,
        logits_NV: Tensor,
        sampling: list[tuple[str, SampleSpec]],
        num_works: int,
        outcome: _Outcome,
    ) -> tuple[Tensor, list[tuple[str, SampleSpec]], list[Tensor | None]]:
        """What each row may not choose, without the rows whose mask is late (deferred) or failed (an error)."""
        held = [pair for pair in sampling if pair[1].params.constraint is not None]
        verdicts = self.masks.collect(held, alone=len(held) == num_works)
        masks: dict[str, Tensor] = {}
        for (request_id, _), verdict in zip(held, verdicts, strict=True):
            if isinstance(verdict, Tensor):
                masks[request_id] = verdict
            elif verdict is None:
                outcome.deferred.add(request_id)
            else:
                outcome.errors[request_id] = str(verdict)
        out = outcome.deferred | outcome.errors.keys()
        rows = [row for row, (request_id, _) in enumerate(sampling) if request_id not in out]
        if len(rows) < len(sampling):
            logits_NV, sampling = logits_NV[rows], [sampling[row] for row in rows]
        return logits_NV, sampling, [masks.get(request_id) for request_id, _ in sampling]

    def _move_on(self, works: Sequence[Work], outcome: _Outcome) -> None:
        """Let the grammars take in what was chosen, while the next step is prepared and computed."""
        for work in works:
            token = outcome.tokens.get(work.request_id)
            if token is None or work.sample is None or work.sample.params.constraint is None:
                continue
            if work.request_id in outcome.errors:
                continue
            try:
                self.masks.advance(work.request_id, token.token_id)
            except Exception as error:  # no thread can be started, say
                outcome.errors[work.request_id] = f"its grammar cannot go on: {error}"

    def _answer_prompts(self, works: Sequence[Work], step: _Forward, outcome: _Outcome) -> None:
        """Weigh the prompt tokens and pool the hidden states of the works that ask for it."""
        for row, work in enumerate(works):
            if work.score is None and work.pooling is None:
                continue
            hidden_ND = step.hidden_TD[step.query_start[row] : step.query_start[row + 1]]
            try:
                if work.score is not None:
                    outcome.scores[work.request_id] = self._score(self._model, hidden_ND, work.score)
                if work.pooling is not None:
                    outcome.pooled[work.request_id] = self._pool(hidden_ND, work.pooling)
            except ArithmeticError as error:
                outcome.errors[work.request_id] = str(error)

    def _logits(self, works: Sequence[Work], hidden_ND: Tensor) -> Tensor:
        return self._model.logits(hidden_ND)

    def _forward(self, works: Sequence[Work], may_replay: bool) -> _Forward:
        if works[0].layers is not None:
            return self._forward_part(works, works[0].layers)
        if may_replay and all(work.is_decode and work.sample is not None for work in works):
            replayed = self._replay.run(works)
            if replayed is not None:
                hidden_BD, slots_B, seconds = replayed
                return _Forward(hidden_BD, hidden_BD, range(len(works) + 1), slots_B, seconds)
        batch = build_batch(works, self._kv.block_size, self._device)
        begin = time.perf_counter()
        hidden_TD = self._model(batch, self._kv.layers)
        seconds = time.perf_counter() - begin
        sampling_ND = hidden_TD[batch.logit_rows]
        return _Forward(hidden_TD, sampling_ND, batch.query_start, batch.slot_mapping_T, seconds)

    def _forward_part(self, works: Sequence[Work], layers: Layers) -> _Forward:
        """Some layers of works that have the same."""
        assert all(work.layers is not None and work.layers[:3] == layers[:3] for work in works)
        batch = build_batch(works, self._kv.block_size, self._device)
        begin = time.perf_counter()
        if layers.first:
            carried = [work.layers.carry for work in works if work.layers is not None]
            # Copies: what failed can be run again from the same.
            x_TD, residual_TD = (torch.cat(tensors) for tensors in zip(*carried, strict=True))
            passage = self._model.resume(batch, x_TD, residual_TD, layers.first)
        else:
            passage = self._model.begin(batch)
        self._model.advance(passage, self._kv.layers, layers.end)
        left: list[_Carry] = []
        if layers.is_last:
            hidden_TD = self._model.conclude(passage)
        else:
            assert passage.residual_TD is not None, "no layer was computed"
            hidden_TD = passage.x_TD + passage.residual_TD
            spans = [slice(*span) for span in pairwise(batch.query_start)]
            left = [_Carry(passage.x_TD[span], passage.residual_TD[span]) for span in spans]
        seconds = time.perf_counter() - begin
        sampling_ND = hidden_TD[batch.logit_rows]
        return _Forward(hidden_TD, sampling_ND, batch.query_start, batch.slot_mapping_T, seconds, left)

    def _quarantine(self, works: Sequence[Work], step: _Forward) -> dict[str, str]:
        """Fail the works whose hidden states are not finite, and clean the KV they wrote.

        Attention multiplies what it masks by zero, so a NaN left in a freed block would reach its next owner.
        """
        finite_T = torch.isfinite(step.hidden_TD.sum(-1, dtype=torch.float32))
        if bool(finite_T.all()):
            return {}
        errors: dict[str, str] = {}
        for row, work in enumerate(works):
            span = slice(step.query_start[row], step.query_start[row + 1])
            if bool(finite_T[span].all()):
                continue
            errors[work.request_id] = "the model's hidden states are not finite"
            self._kv.clear(step.slot_mapping_T[span])
        return errors


def _choose(
    logits_NV: Tensor | None,
    sampling: Sequence[tuple[str, SampleSpec]],
    masks: Sequence[Tensor | None] | None,
    row: Row,
) -> tuple[dict[str, SampledToken], dict[str, str]]:
    tokens: dict[str, SampledToken] = {}
    errors: dict[str, str] = {}
    if logits_NV is None or not sampling:
        return tokens, errors
    outcomes = sample(logits_NV, [spec for _, spec in sampling], masks, row=row)
    for (request_id, _), outcome in zip(sampling, outcomes, strict=True):
        if isinstance(outcome, SampledToken):
            tokens[request_id] = outcome
        else:
            errors[request_id] = f"sampling failed: {outcome}"
    return tokens, errors


def _phase(works: Sequence[Work]) -> str:
    kinds = {work.is_decode for work in works}
    return "mixed" if len(kinds) > 1 else "decode" if True in kinds else "prefill"


def _manner(logits_V: Tensor, spec: SampleSpec, mask_V: Tensor | None = None) -> str:
    return "greedy" if spec.params.greedy else "random"


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an error of its own for devices, and a plain RuntimeError for main memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
