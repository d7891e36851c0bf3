"""A replay from its trace to its record: ask the server, plan, write the bodies, send, and keep what came back."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from braid import __version__
from braid.core.errors import InvalidParameterError
from braid.lab.progress import NoProgress, Progress
from braid.lab.replay.asking.bodies import Bodies, write_bodies
from braid.lab.replay.asking.forms import PATHS
from braid.lab.replay.asking.http import endpoint
from braid.lab.replay.asking.target import ServerFacts, Target, TargetError, probe
from braid.lab.replay.files import Form, History, RunSpec
from braid.lab.replay.live import Live, NoLive
from braid.lab.replay.outcome import outcome_frame
from braid.lab.replay.planning.content import planned_hit_rate
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.replay.record import Run, RunHead, join
from braid.lab.replay.supervise import LEAD_S, Played, ReplayError, Stop, missing, play
from braid.lab.table import Trace

__all__ = ["ReplayError", "RunOptions", "Stop", "replay"]

HIT_BLOCK = 16
"""Grain of the planned hit rate, in tokens: that of most servers' caches."""
SMALL_RATE = 100.0
"""Requests per second, on average, up to which one sender is enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a plan is played.

    Args:
        form: how prompts are written; None for the best that the server takes.
        history: what later turns hold of earlier replies.
        content_seed: of the prompts' words; None: drawn anew, so that the server's cache knows nothing of them before
            the run, whatever was played against it.
        num_senders: processes; None: one, or two for a plan of a high rate on two cores or more.
        timeout_s, drain_s, max_retries, retry_wait_s, stop_on_failure, max_connections: see ``files.RunSpec``.
        lag_limit_s: p99 of the send lag above this makes the run invalid.
        warmup_s: requests scheduled earlier are sent, but not measured; ``measure_s``: for how long they are
            measured; None: to the last one.
        scratch: folder for the bytes of the requests while the run lasts; None for the system's.

    Raises:
        InvalidParameterError: a value makes no sense.
    """

    form: Form | None = None
    history: History = "recorded"
    content_seed: int | None = None
    num_senders: int | None = None
    timeout_s: float = 600.0
    drain_s: float | None = None
    max_retries: int = 0
    retry_wait_s: float = 1.0
    stop_on_failure: bool = False
    max_connections: int = 10_000
    lag_limit_s: float = 0.02
    warmup_s: float = 0.0
    measure_s: float | None = None
    scratch: str | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_s", "lag_limit_s", "max_connections", "measure_s", "num_senders"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidParameterError(f"{name} must be above 0, got {value}", param=name)
        for name in ("drain_s", "max_retries", "retry_wait_s", "warmup_s"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InvalidParameterError(f"{name} must not be negative, got {value}", param=name)


def replay(
    what: Trace | ReplayPlan,
    target: Target,
    plan_options: PlanOptions | None = None,
    options: RunOptions = RunOptions(),
    *,
    label: str = "",
    facts: ServerFacts | None = None,
    progress: Progress | None = None,
    live: Live | None = None,
    stop: Stop | None = None,
    lead_s: float = LEAD_S,
) -> Run:
    """Play a trace, or a plan, against a server.

    Args:
        what: a trace, planned with ``plan_options`` (and the server's context, if they name none); or a plan.
        label: what people call the run.
        facts: of ``probe``, for a server that was asked before.
        lead_s: from the senders being ready to the run's start; negative for tests of lateness.

    Raises:
        TargetError: the server is not there or lacks what is needed.
        TraceError: the trace cannot be planned so.
        ReplayError: a sender cannot start, or there is nothing to send.
    """
    progress = progress or NoProgress()
    if facts is None:
        progress.update("asking the server", 0, None)
        facts = probe(target, options.form)
    plan, licence, citation = _planned(what, plan_options, facts, progress)
    if not plan.num_requests:
        left_out = ", ".join(f"{name} {len(rows):,}" for name, rows in plan.unsendable.items())
        raise ReplayError(f"no request of {plan.source} can be sent (left out: {left_out or 'none'})")
    with _scratch(options.scratch) as folder:
        content_seed = secrets.randbits(32) if options.content_seed is None else options.content_seed
        bodies = write_bodies(
            plan, facts, target, folder, history=options.history, seed=content_seed, progress=progress
        )
        spec = spec_of(plan, target, options, bodies)
        (folder / "run.json").write_bytes(msgspec.json.encode(spec))
        started_at = datetime.now(UTC)
        played = play(
            folder,
            spec,
            num_requests=plan.num_requests,
            span_s=_span(plan.frame.filter(pl.col("after").list.len() == 0)),
            api_key=target.api_key,
            live=live or NoLive(),
            stop=stop or Stop(),
            lead_s=lead_s,
        )
    frame = _frame(plan, played)
    head = RunHead(
        label=label,
        started_at=started_at.isoformat(timespec="seconds"),
        url=target.url,
        model=facts.model,
        endpoint=PATHS[facts.form],
        server=facts.server,
        plan_sha256=plan.sha256,
        source=plan.source,
        data_sha256=plan.data_sha256,
        licence=licence,
        citation=citation,
        plan=asdict(plan.options),
        run={**_conditions(options, facts, spec), "content_seed": content_seed},
        notes=(*plan.notes, *facts.notes, *bodies.notes),
        unsendable={name: len(rows) for name, rows in plan.unsendable.items()},
        output_enforced=facts.output_enforced,
        history=options.history,
        lag_limit_s=options.lag_limit_s,
        window_s=_window(frame, options, played.stopped),
        stopped=played.stopped,
        problems=played.problems,
        machine=machine(),
        planned_hit_rate=planned_hit_rate(plan, HIT_BLOCK),
    )
    return Run(head, frame)


def spec_of(plan: ReplayPlan, target: Target, options: RunOptions, bodies: Bodies) -> RunSpec:
    """What the senders must know.

    Raises:
        TargetError: the host has no address.
    """
    place = endpoint(target.url)
    try:
        address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise TargetError(f"{place.host} has no address: {error.strerror or error}") from None
    senders = num_senders(plan, options)
    concurrency = plan.options.concurrency if plan.options.arrivals == "concurrency" else None
    return RunSpec(
        host=place.host,
        port=place.port,
        address=str(address),
        tls=place.tls,
        request_line=bodies.request_line,
        headers=bodies.headers,
        form=bodies.form,
        history=options.history,
        before_reply=bodies.before_reply,
        after_reply=bodies.after_reply,
        num_senders=senders,
        slots=None if concurrency is None else slots(concurrency, senders),
        timeout_s=options.timeout_s,
        drain_s=options.drain_s,
        max_retries=options.max_retries,
        retry_wait_s=options.retry_wait_s,
        stop_on_failure=options.stop_on_failure,
        late_read_s=options.lag_limit_s,
        max_connections=options.max_connections,
    )


def num_senders(plan: ReplayPlan, options: RunOptions) -> int:
    """How many processes play it: no more than programs at a time, where their number is limited."""
    if plan.options.arrivals == "concurrency":
        return min(options.num_senders or 1, plan.options.concurrency or 1)
    if options.num_senders is not None:
        return options.num_senders
    busy = plan.num_requests > SMALL_RATE * max(_span(plan.frame), 1.0)
    return min(2, _cores()) if busy else 1


def slots(concurrency: int, senders: int) -> tuple[int, ...]:
    """Each sender's share of the programs at a time."""
    return tuple(concurrency // senders + (number < concurrency % senders) for number in range(senders))


def machine() -> str:
    """The client's machine in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{_cpu_name()}, {_cores()} cores, {memory:.0f} GiB, load {load:.1f} at the end; "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, braid {__version__}"
    )


@contextlib.contextmanager
def _scratch(where: str | None) -> Iterator[Path]:
    """A folder for us alone, as it holds prompts.

    Raises:
        ReplayError: it cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="braid-replay-", dir=where, ignore_cleanup_errors=True)
    except OSError as error:
        raise ReplayError(
            f"cannot make a folder in {where or tempfile.gettempdir()}: {error.strerror}"
        ) from None
    with folder as name:
        yield Path(name)


def _planned(
    what: Trace | ReplayPlan, options: PlanOptions | None, facts: ServerFacts, progress: Progress
) -> tuple[ReplayPlan, str, str]:
    """The plan, and the licence and citation of what is behind it."""
    if isinstance(what, ReplayPlan):
        return what, "", ""
    options = options or PlanOptions()
    if options.max_tokens is None and facts.max_tokens is not None:
        options = replace(options, max_tokens=facts.max_tokens)
    return build_plan(what, options, progress), what.info.licence, what.info.citation


def _frame(plan: ReplayPlan, played: Played) -> pl.DataFrame:
    groups = plan.frame["group"].to_list()
    outcomes = [*played.outcomes, *missing(groups, played.outcomes, played.reasons)]
    return join(plan.frame, outcome_frame(outcomes, plan.num_requests, ""))


def _span(frame: pl.DataFrame) -> float:
    latest = frame["start_s"].max()
    return float(latest) if isinstance(latest, float) else 0.0


def _window(frame: pl.DataFrame, options: RunOptions, stopped: str) -> tuple[float, float]:
    """From the warm-up to the end that was asked for, or to the last request (as far as it was scheduled; what a run
    that was stopped never came to lies behind it)."""
    times = frame["scheduled_s"] if stopped else frame["scheduled_s"].fill_null(frame["start_s"])
    latest = times.max()
    last = float(latest) if isinstance(latest, float) else 0.0
    end = last if options.measure_s is None else min(last, options.warmup_s + options.measure_s)
    return options.warmup_s, max(end, options.warmup_s)


def _conditions(options: RunOptions, facts: ServerFacts, spec: RunSpec) -> Mapping[str, Any]:
    """What the run was done with, beside the plan."""
    found = {
        "form": facts.form,
        "num_senders": spec.num_senders,
        "slots": spec.slots,
        "max_tokens": facts.max_tokens,
        "overhead_tokens": facts.overhead_tokens,
        "turn_overhead_tokens": facts.turn_overhead_tokens,
        "continuous_usage": facts.continuous_usage,
        "reports_cached": facts.reports_cached,
    }
    return {**asdict(options), **found}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
