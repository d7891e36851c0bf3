"""How long steps take on this machine: a short sweep with the real runner, for the simulator and for predictions.

Nothing here passes the scheduler: plans are made by hand, of made-up tokens, over the KV store as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, StepPlan, Work
from braid.policy.calibration import DecodeSample, MixedSample, PrefillSample, fit_cost
from braid.policy.cost import StepCost
from braid.runner.runner import Runner
from braid.sched.config import MIXED, SchedulerConfig

VERSION = 1
SHORT = 16
"""Tokens: the context at which attention counts as nothing."""
SEQS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (512, 2048, 8192, 32768)
CHUNKS = (64, 128, 256, 512, 1024, 2048)
_PARAMS = SamplingParams(temperature=0, ignore_eos=True)

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Tables, and how far their predictions were from steps that they had not seen.

    Args:
        errors: by kind of step (``decode``, ``prefill``, ``mixed``): median of |predicted / measured - 1|.
        manifest: the scheduler's numbers; a simulation must have the same to be compared.
    """

    cost: StepCost
    errors: dict[str, float]
    manifest: dict[str, Any]
    num_steps: int


class _Shape(NamedTuple):
    """Decodes at one context, and chunks: (length, context before it)."""

    num_seqs: int
    context: int
    chunks: tuple[tuple[int, int], ...]
    sampled: bool = False


class _Rig:
    """Runs steps of a given shape on the runner and times them as the loop would see them."""

    def __init__(self, runner: Runner, config: SchedulerConfig, vocab_size: int) -> None:
        self._runner = runner
        self._config = config
        self._rng = random.Random(0)
        self._vocab = vocab_size
        self.num_steps = 0

    def fits(self, shape: _Shape) -> bool:
        """Whether the store, the budget and the context have room for it."""
        config = self._config
        tokens = shape.num_seqs + sum(length for length, _ in shape.chunks)
        longest = max([shape.context + 1, *(length + before for length, before in shape.chunks)])
        blocks = sum(-(-total // config.block_size) for total in self._lengths(shape))
        return (
            shape.num_seqs <= config.max_num_seqs
            and tokens <= config.max_num_batched_tokens
            and longest <= config.max_model_len
            and blocks <= config.num_blocks
        )

    def run(self, shape: _Shape) -> tuple[float, float]:
        """Seconds of one step, and those of them that went into logits and sampling."""
        times = self._runner.times[MIXED]
        before = times.head + times.sample
        self._runner.submit(StepPlan(self.num_steps, MIXED, tuple(self._works(shape))))
        (result,) = self._runner.wait(None)
        if result.errors:
            raise RuntimeError(f"a step failed while calibrating: {next(iter(result.errors.values()))}")
        self.num_steps += 1
        return result.duration, times.head + times.sample - before

    def _lengths(self, shape: _Shape) -> Iterator[int]:
        yield from [shape.context + 1] * shape.num_seqs
        yield from (length + before for length, before in shape.chunks)

    def _works(self, shape: _Shape) -> Iterator[Work]:
        size, next_block = self._config.block_size, 0
        counts = [(1, shape.context)] * shape.num_seqs + list(shape.chunks)
        for number, (count, before) in enumerate(counts):
            num_blocks = -(-(count + before) // size)
            tokens = [self._rng.randrange(self._vocab) for _ in range(count)]
            is_decode = number < shape.num_seqs
            sample = (
                SampleSpec(_PARAMS, 0, [0] * (before + 1), before) if is_decode or shape.sampled else None
            )
            blocks = list(range(next_block, next_block + num_blocks))
            yield Work(str(number), tokens, before, blocks, sample)
            next_block += num_blocks


def calibrate(
    runner: Runner,
    config: SchedulerConfig,
    vocab_size: int,
    profile: str,
    *,
    repeats: int = 3,
    tell: Tell | None = None,
) -> Calibration:
    """Sweep, fit, and check on other shapes. Nobody else may use the runner meanwhile.

    Args:
        profile: names machine, model and number format; printed beside what is predicted.
        tell: hears (what, done, total).
    """
    rig = _Rig(runner, config, vocab_size)
    tell = tell or (lambda what, done, total: None)
    contexts = [SHORT, *_below(CONTEXTS, config.max_model_len - 1)]
    decodes = [_Shape(n, c, ()) for n in SEQS for c in contexts]
    chunks = _below(CHUNKS, config.max_num_batched_tokens)
    behind = [0, *_below(CONTEXTS, config.max_model_len - max(chunks) - 1)]
    prefills = [_Shape(0, 0, ((n, before),)) for n in chunks for before in behind]
    shapes = [shape for shape in [*decodes, *prefills, *_mixed(rig, contexts, chunks)] if rig.fits(shape)]
    measured = _measure(rig, shapes, repeats, tell)
    cost = fit_cost(
        profile,
        [
            DecodeSample(s.num_seqs, s.context, seconds, head)
            for s, seconds, head in measured
            if s.num_seqs and not s.chunks
        ],
        [PrefillSample(*s.chunks[0], seconds) for s, seconds, _ in measured if not s.num_seqs],
        [
            MixedSample(s.num_seqs, s.context, *s.chunks[0], seconds)
            for s, seconds, _ in measured
            if s.num_seqs and s.chunks
        ],
    )
    errors = _check(rig, cost, contexts, chunks, tell)
    return Calibration(cost=cost, errors=errors, manifest=asdict(config), num_steps=rig.num_steps)


def _below(values: Sequence[int], limit: int) -> list[int]:
    """Those within the limit, and the limit itself where it lies beyond them or between two of them."""
    return [value for value in values if value < limit] + [limit] if limit < values[-1] else list(values)


def _mixed(rig: _Rig, contexts: Sequence[int], chunks: Sequence[int]) -> list[_Shape]:
    long = contexts[-2] if len(contexts) > 2 else contexts[-1]
    pairs = [(4, chunks[0]), (4, chunks[-1] - 4), (16, chunks[-1] // 2)]
    return [_Shape(n, long, ((chunk, before),)) for n, chunk in pairs for before in (0, long)]


def _measure(
    rig: _Rig, shapes: Sequence[_Shape], repeats: int, tell: Tell
) -> list[tuple[_Shape, float, float]]:
    """Rounds over all shapes, so that a busy moment of the machine does not fall on one shape alone.

    Decodes are run once before they are timed: there are more shapes here than recordings are kept, and a real engine
    stays with one for many steps.
    """
    for number, shape in enumerate(shapes):  # pages are touched
        rig.run(shape)
        tell("warming up", number + 1, len(shapes))
    measured = []
    for done in range(repeats * len(shapes)):
        shape = shapes[done % len(shapes)]
        if not shape.chunks:
            rig.run(shape)
        measured.append((shape, *rig.run(shape)))
        tell("measuring steps", done + 1, repeats * len(shapes))
    return measured


def _check(
    rig: _Rig, cost: StepCost, contexts: Sequence[int], chunks: Sequence[int], tell: Tell
) -> dict[str, float]:
    """Median relative errors on random shapes between the knots."""
    rng = random.Random(1)
    longest, largest = contexts[-1], chunks[-1]

    def chunk() -> tuple[int, int]:
        return rng.randint(chunks[0], largest // 2), rng.randint(0, longest // 2)

    kinds: dict[str, Callable[[], _Shape]] = {
        "decode": lambda: _Shape(rng.randint(1, 32), rng.randint(SHORT, longest // 2), ()),
        "prefill": lambda: _Shape(0, 0, (chunk(),), sampled=True),
        "mixed": lambda: _Shape(
            rng.randint(1, 16), rng.randint(SHORT, longest // 2), (chunk(),), sampled=True
        ),
    }
    errors: dict[str, float] = {}
    for number, (kind, draw) in enumerate(kinds.items()):
        shapes = [shape for _ in range(24) if rig.fits(shape := draw())][:12]
        off = []
        for shape in shapes:
            rig.run(shape)
            measured = median(rig.run(shape)[0] for _ in range(2))
            off.append(abs(cost.step(rig._works(shape)).seconds / measured - 1))
        errors[kind] = median(off)
        tell("checking", number + 1, len(kinds))
    return errors
