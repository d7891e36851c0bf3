"""Flags of the verbs that replay: what becomes a plan, how it is sent, where to, and what counts as good enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from braid.core.env import named
from braid.core.errors import InvalidParameterError
from braid.core.metrics import SLO

if TYPE_CHECKING:
    from braid.lab.replay.asking.target import Target
    from braid.lab.replay.planning.plan import PlanOptions
    from braid.lab.replay.run import RunOptions
    from braid.lab.table import Trace

TARGET = Group("Server", sort_key=1)
PLAN = Group("Plan", sort_key=2)
RUN = Group("Sending", sort_key=3)
LIMITS = Group("Limits (SLO)", sort_key=4)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class TargetFlags:
    """Where to send."""

    url: Annotated[str, Parameter(group=TARGET, help="Base URL, with or without /v1.")] = (
        "http://127.0.0.1:8000"
    )
    model: Annotated[
        str | None, Parameter(group=TARGET, help="Served model.", show_default="the only one")
    ] = None
    api_key_env: Annotated[
        str,
        Parameter(group=TARGET, help="Environment variable that holds the API key; unset means none."),
    ] = "BRAID_API_KEY"
    api_key_file: Annotated[
        Path | None, Parameter(group=TARGET, help="File that holds the API key.", show_default="none")
    ] = None

    def target(self) -> Target:
        """Read the key.

        Raises:
            InvalidParameterError: its file cannot be read, or the key is none.
        """
        from braid.lab.replay.asking.target import Target

        return Target(url=self.url, model=self.model, api_key=self._key())

    def _key(self) -> str | None:
        where = f"the environment variable {self.api_key_env}"
        key = named(self.api_key_env)
        if self.api_key_file is not None:
            where = f"--api-key-file {self.api_key_file}"
            try:
                key = self.api_key_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidParameterError(f"{where}: cannot be read: {error}") from None
        key = (key or "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InvalidParameterError(f"{where} holds no API key: one printable ASCII word is needed")
        return key or None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFlags:
    """The fields of ``PlanOptions``."""

    start: Annotated[float, Parameter(group=PLAN, help="Only programs from this second of the trace on.")] = (
        0.0
    )
    span: Annotated[
        float | None, Parameter(group=PLAN, help="And within so many seconds.", show_default="to the end")
    ] = None
    window: Annotated[
        Literal["given", "random", "low", "middle", "high"],
        Parameter(
            group=PLAN,
            help="A stretch of --span seconds drawn by --seed instead of --start: any, or of the third of them with "
            "the fewest, middling or most requests.",
        ),
    ] = "given"
    programs: Annotated[
        int | None, Parameter(group=PLAN, help="At most so many programs.", show_default="all")
    ] = None
    arrivals: Annotated[
        Literal["trace", "rate", "concurrency"],
        Parameter(
            group=PLAN,
            help="Programs start by the trace's clock, at --rate per second, or so that --concurrency are running.",
        ),
    ] = "trace"
    rate: Annotated[
        float | None,
        Parameter(group=PLAN, help="Programs per second, with --arrivals rate.", show_default="none"),
    ] = None
    cv: Annotated[float, Parameter(group=PLAN, help="Their gaps' variation; 1 is Poisson.")] = 1.0
    concurrency: Annotated[
        int | None,
        Parameter(group=PLAN, help="Programs at a time, with --arrivals concurrency.", show_default="none"),
    ] = None
    turns: Annotated[
        Literal["gap", "timestamp"],
        Parameter(
            group=PLAN, help="A turn waits for the answer and the recorded gap, or goes at its recorded time."
        ),
    ] = "gap"
    max_gap: Annotated[
        float | None, Parameter(group=PLAN, help="Cap on gaps, in seconds; noted.", show_default="none")
    ] = None
    failed: Annotated[
        Literal["send", "skip", "cancel"],
        Parameter(
            group=PLAN,
            help="Rows that failed: sent with a drawn output length, left out, or sent and cancelled.",
        ),
    ] = "send"
    length_factor: Annotated[float, Parameter(group=PLAN, help="Times all lengths; noted.")] = 1.0
    max_tokens: Annotated[
        int | None,
        Parameter(
            group=PLAN, help="Longest prompt and output together.", show_default="the server's context"
        ),
    ] = None
    too_long: Annotated[
        Literal["skip", "cut"],
        Parameter(group=PLAN, help="Longer requests are left out, or their prompts cut."),
    ] = "skip"
    seed: Annotated[int, Parameter(group=PLAN, help="Same seed, same plan.")] = 0

    def plan(self, trace: Trace) -> PlanOptions:
        """For a trace, which says where a drawn window lies.

        Raises:
            BraidError: there is no such window.
        """
        from braid.lab.replay.planning.plan import PlanOptions
        from braid.lab.replay.planning.stretch import window_start

        start = self.start
        if self.window != "given":
            if self.span is None:
                raise InvalidParameterError("--window needs --span, the length of the stretch to draw")
            start = window_start(trace, self.span, self.window, self.seed)
        return PlanOptions(
            start_s=start,
            span_s=self.span,
            max_programs=self.programs,
            arrivals=self.arrivals,
            rate=self.rate,
            cv=self.cv,
            concurrency=self.concurrency,
            turns=self.turns,
            max_gap_s=self.max_gap,
            failed=self.failed,
            length_factor=self.length_factor,
            max_tokens=self.max_tokens,
            too_long=self.too_long,
            seed=self.seed,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class RunFlags:
    """The fields of ``RunOptions``."""

    form: Annotated[
        Literal["ids", "text", "chat"] | None,
        Parameter(
            group=RUN,
            help="Prompts as token ids or text (/v1/completions), or as messages (/v1/chat/completions).",
            show_default="the first that the server takes",
        ),
    ] = None
    history: Annotated[
        Literal["recorded", "live"],
        Parameter(
            group=RUN, help="Later turns hold a stand-in for earlier replies, or the replies themselves."
        ),
    ] = "recorded"
    content_seed: Annotated[
        int | None,
        Parameter(
            group=RUN,
            help="Of the prompts' words; the same one again finds the server's cache warm.",
            show_default="new in every run",
        ),
    ] = None
    timeout: Annotated[float, Parameter(group=RUN, help="Seconds for each attempt.")] = 600.0
    drain: Annotated[
        float | None,
        Parameter(group=RUN, help="Seconds for open requests after the last start.", show_default="no limit"),
    ] = None
    retries: Annotated[int, Parameter(group=RUN, help="Further attempts after 429 and 503.")] = 0
    retry_wait: Annotated[
        float, Parameter(group=RUN, help="Seconds before them, where there is no Retry-After.")
    ] = 1.0
    stop_on_failure: Annotated[
        bool, Parameter(group=RUN, help="A failed turn ends its program.", negative=())
    ] = False
    senders: Annotated[
        int | None, Parameter(group=RUN, help="Sending processes.", show_default="1, or 2 for high rates")
    ] = None
    max_connections: Annotated[
        int, Parameter(group=RUN, help="Of each sending process; a plan that needs more is refused.")
    ] = 10_000
    lag_limit: Annotated[
        float, Parameter(group=RUN, help="The run is invalid if p99 of the send lag exceeds so many seconds.")
    ] = 0.02
    warmup: Annotated[float, Parameter(group=RUN, help="First seconds that are not measured.")] = 0.0
    measure: Annotated[
        float | None,
        Parameter(group=RUN, help="Seconds that are measured, from then on.", show_default="to the end"),
    ] = None
    scratch: Annotated[
        Path | None,
        Parameter(
            group=RUN, help="Folder for the requests' bytes during the run.", show_default="the system's"
        ),
    ] = None

    def run(self) -> RunOptions:
        """Validate.

        Raises:
            InvalidParameterError: naming the field and the value.
        """
        from braid.lab.replay.run import RunOptions

        return RunOptions(
            form=self.form,
            history=self.history,
            content_seed=self.content_seed,
            num_senders=self.senders,
            timeout_s=self.timeout,
            drain_s=self.drain,
            max_retries=self.retries,
            retry_wait_s=self.retry_wait,
            stop_on_failure=self.stop_on_failure,
            max_connections=self.max_connections,
            lag_limit_s=self.lag_limit,
            warmup_s=self.warmup,
            measure_s=self.measure,
            scratch=None if self.scratch is None else str(self.scratch),
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class SloFlags:
    """Limits that a good answer keeps, in seconds."""

    slo_ttft: Annotated[
        float | None, Parameter(group=LIMITS, help="Time to the first token.", show_default="none")
    ] = None
    slo_tpot: Annotated[
        float | None, Parameter(group=LIMITS, help="Mean time between tokens.", show_default="none")
    ] = None
    slo_e2e: Annotated[
        float | None, Parameter(group=LIMITS, help="Time to the last token.", show_default="none")
    ] = None
    slo_jct: Annotated[
        float | None, Parameter(group=LIMITS, help="Time of a whole program.", show_default="none")
    ] = None

    def slo(self) -> SLO:
        return SLO(ttft=self.slo_ttft, tpot=self.slo_tpot, e2e=self.slo_e2e, jct=self.slo_jct)
