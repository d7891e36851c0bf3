from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from braid.lab.replay.outcome import Outcome, outcome_frame
from braid.lab.replay.planning.plan import PLAN_SCHEMA
from braid.lab.replay.record import Run, RunHead, join

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real traces beside the repository; tests that want it skip where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real traces are not here: ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def make_head() -> Callable[..., RunHead]:
    """A run's head; arguments replace its fields."""

    def make(**fields: Any) -> RunHead:
        known: dict[str, Any] = {
            "label": "bursty code",
            "started_at": "2026-03-01T09:00:00+00:00",
            "url": "http://127.0.0.1:8000",
            "model": "smollm2-135m",
            "endpoint": "/v1/completions",
            "server": "braid 0.1.0",
            "plan_sha256": "ab" * 32,
            "source": "made for tests",
            "data_sha256": "cd" * 32,
            "plan": {"arrivals": "trace", "turns": "gap", "seed": 0},
            "run": {"num_senders": 2, "timeout_s": 60.0},
            "notes": (),
            "unsendable": {},
            "output_enforced": True,
            "history": "recorded",
            "lag_limit_s": 0.02,
            "window_s": (0.0, 100.0),
            "machine": "2 cores",
        }
        return RunHead(**(known | fields))

    return make


@pytest.fixture(scope="session")
def make_run(make_head: Callable[..., RunHead]) -> Callable[..., Run]:
    """A run of given outcomes. ``columns`` of the plan that are not the usual ones; ``head`` as above."""

    def make(outcomes: Sequence[Outcome], columns: Mapping[str, Any] | None = None, **head: Any) -> Run:
        num = len(outcomes)
        usual: dict[str, Any] = {
            "request": range(num),
            "group": range(num),
            "program": [f"lone-{number}" for number in range(num)],
            "turn": [0] * num,
            "parent": [None] * num,
            "start_s": [outcome.scheduled_s for outcome in outcomes],
            "after": [[]] * num,
            "delay_s": [0.0] * num,
            "in_tok": [10] * num,
            "out_tok": [sum(outcome.chunk_tokens) or 1 for outcome in outcomes],
            "cancel_after_tok": [None] * num,
            "segment_keys": [[1]] * num,
            "segment_toks": [[10]] * num,
            "shared_tok": [0] * num,
            "source_row": range(num),
        }
        frame = pl.DataFrame(usual | dict(columns or {}), schema=dict(PLAN_SCHEMA))
        return Run(make_head(**head), join(frame, outcome_frame(list(outcomes), num, "")))

    return make


@pytest.fixture(scope="session")
def busy_run(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """A run as a bursty load on a small server would give it: waves of load, a queue, multi-token pieces, agents'
    programs, and every outcome there is. Seeded; ``late_s`` delays every send."""

    def make(num: int = 1200, seed: int = 0, late_s: float = 0.0, span_s: float = 180.0, **head: Any) -> Run:
        random = np.random.default_rng(seed)
        rate = 1.4 + np.sin(np.linspace(0, 4 * np.pi, num)) + random.gamma(0.3, 0.4, num)
        start = np.cumsum(random.gamma(0.5, 2.0, num) / rate)
        start *= span_s / start[-1]
        prompt = random.lognormal(6.2, 1.1, num).astype(int) + 1
        output = random.lognormal(3.6, 0.9, num).astype(int) + 1
        program = random.integers(0, num // 3 + 1, num)
        seen: dict[int, int] = {}
        turns = [seen.setdefault(key, 0) or 0 for key in program.tolist()]
        for number, key in enumerate(program.tolist()):
            turns[number] = seen[key]
            seen[key] += 1
        busy, outcomes = 0.0, []
        for number in range(num):
            at = float(start[number])
            sent = at + late_s + float(random.gamma(0.4, 0.003))
            queue = max(0.0, busy - sent)
            outcomes.append(
                _busy_outcome(random, number, at, sent, queue, int(prompt[number]), int(output[number]))
            )
            if outcomes[-1].status in ("ok", "cut"):
                busy = max(busy, sent) + float(prompt[number]) * 5e-5 + float(output[number]) * 8e-4
        columns = {
            "group": program,
            "program": [f"agent-{key}" for key in program],
            "turn": turns,
            "in_tok": prompt,
            "out_tok": output,
            "segment_toks": [[tokens] for tokens in prompt],
        }
        return make_run(outcomes, columns, **({"window_s": (span_s * 0.1, span_s)} | head))

    return make


def _busy_outcome(
    random: np.random.Generator, number: int, at: float, sent: float, queue: float, prompt: int, output: int
) -> Outcome:
    kind = random.random()
    if queue > 6.0 and kind < 0.6:
        told = 2.0 if kind < 0.4 else None
        return Outcome(
            request=number, status="refused", scheduled_s=at, sent_s=sent, end_s=sent + 0.004, http_status=429,
            retry_after_s=told, attempts=2, reason="429: the queue is full",
        )  # fmt: skip
    if kind > 0.995:
        return Outcome(
            request=number, status="unreachable", scheduled_s=at, sent_s=sent, end_s=sent + 0.01, attempts=1,
            reason="connection refused",
        )  # fmt: skip
    tokens = np.minimum(1 + random.poisson(0.15, output), 4)
    tokens = tokens[: int(np.searchsorted(np.cumsum(tokens), output)) + 1]
    tokens[-1] -= int(tokens.sum()) - output
    first = sent + queue + prompt * 1.5e-4 + float(random.gamma(2.0, 0.02))
    times = first + np.concatenate([[0.0], np.cumsum(random.gamma(4.0, 0.009, len(tokens) - 1))])
    status, reason = ("cut", "the connection ended inside the answer") if kind > 0.985 else ("ok", "")
    if first - at > 9.0:
        times, tokens, status, reason = times[:0], tokens[:0], "timed_out", "no answer within 9 s"
    return Outcome(
        request=number, status=status, scheduled_s=at, sent_s=sent, first_byte_s=first - 0.001,  # type: ignore[arg-type]
        chunk_times_s=tuple(times.tolist()), chunk_tokens=tuple(tokens.tolist()),
        end_s=at + 9.0 if status == "timed_out" else float(times[-1]) + 0.002, http_status=200,
        finish_reason="length", prompt_tokens=prompt if status == "ok" else None,
        completion_tokens=output if status == "ok" else None,
        cached_tokens=int(prompt * random.beta(1.2, 2.0)) if status == "ok" else None,
        attempts=1, read_lag_s=float(random.gamma(0.5, 0.001)), reason=reason,
    )  # fmt: skip
