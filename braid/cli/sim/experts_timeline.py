"""``braid sim experts --timeline``: steps of a model whose experts do not all fit, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import DEFAULT, expert_cache
from braid.sim.sizes import ModelSizes, model_named

if TYPE_CHECKING:
    from braid.cli.sim.experts import ReplayFlags
    from braid.sim.experts.study import Load

TIMELINE = Group("Timeline", sort_key=2)
VERSION = 1
USUAL_FRACTION = 0.25
LABEL = "simulated; nothing was measured"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineFlags:
    """What is simulated beside the cache."""

    timeline: Annotated[
        bool,
        Parameter(group=TIMELINE, negative="", help="Simulate steps in virtual time, not the cache alone."),
    ] = False
    machine: Annotated[
        str,
        Parameter(
            group=TIMELINE,
            help="a6000-xeon10 (data sheets), a6000-xeon10-fitted (the CPU's speed fitted to a published number), or "
            "a JSON file with the times of experts: link_s, fast_s, slow_s (null: nothing is computed below), ...",
        ),
    ] = "a6000-xeon10"
    model: Annotated[
        str,
        Parameter(group=TIMELINE, help="qwen2-57b-a14b, deepseek-v2-lite, mixtral-8x7b or qwen3-30b-a3b."),
    ] = "qwen2-57b-a14b"
    dtype: Annotated[str, Parameter(group=TIMELINE, help="Of experts: bfloat16, int8 or int4.")] = "int4"
    schedule: Annotated[
        Literal["on", "off"],
        Parameter(
            group=TIMELINE,
            help="Plan a layer over both sides and the link; off: misses are computed below.",
        ),
    ] = "on"
    prefetch: Annotated[
        Literal["on", "off", "auto"],
        Parameter(group=TIMELINE, help="Fetch early what later layers' routers foretell."),
    ] = "on"
    prompt: Annotated[
        int, Parameter(group=TIMELINE, help="Tokens of the prompt, where routing is synthetic.")
    ] = 128
    tokens: Annotated[
        int, Parameter(group=TIMELINE, help="Tokens that follow it, where routing is synthetic.")
    ] = 32
    seed: Annotated[int, Parameter(group=TIMELINE, help="Of synthetic routing and of predictions.")] = 0

    def check_unused(self) -> None:
        """
        Raises:
            InvalidParameterError: something was said of a timeline that is not simulated.
        """
        usual = TimelineFlags()
        for field in fields(self):
            if getattr(self, field.name) != getattr(usual, field.name):
                raise InvalidParameterError(
                    f"--{field.name} is of the timeline: add --timeline", param=field.name
                )


def run_timeline(flags: TimelineFlags, replay: ReplayFlags, json: Path | None) -> None:
    """
    Args:
        replay: its trace is the routing, or a synthetic one where it is None; its policy and slots are the cache's.

    Raises:
        BraidError: a name or a number cannot be, or a file cannot be read; the text says which.
    """
    from braid.cli.trace.reading import write_json

    policy = DEFAULT if replay.policy == type(replay)().policy else replay.policy
    if "," in policy:
        raise InvalidParameterError(f"--timeline simulates one --policy, got {policy}", param="policy")
    fraction = _fraction(replay, model_named(flags.model).num_experts)
    report = timeline_report(flags, trace=replay.trace, policy=policy, scope=replay.scope, fraction=fraction)
    if json is not None:
        write_json(report, json)
    _show(report)


def _fraction(replay: ReplayFlags, per_layer: int) -> float:
    if replay.slots is not None and replay.fraction is not None:
        raise InvalidParameterError(
            "say the size with --slots or with --fraction, not with both", param="slots"
        )
    if replay.slots is not None:
        if not 1 <= replay.slots <= max(1, per_layer):
            raise InvalidParameterError(
                f"slots are counted per layer, and a layer has {per_layer} experts; got {replay.slots}",
                param="slots",
            )
        return replay.slots / max(1, per_layer)
    return USUAL_FRACTION if replay.fraction is None else replay.fraction


def timeline_report(
    flags: TimelineFlags, *, trace: Path | None, policy: str, scope: str, fraction: float
) -> dict[str, Any]:
    """One run beside the baseline, as JSON."""
    from braid.sim.experts.machines import costs_of
    from braid.sim.experts.study import BASELINE, PAPER, PAPER_MEAN, simulate, summary
    from braid.sim.experts.timeline import Parts

    expert_cache(policy, ExpertShape(1, 1, 1), scope=scope)  # a wrong name is said before anything is made
    model = model_named(flags.model)
    costs = costs_of(flags.machine, model, flags.dtype)
    parts = Parts(schedule=flags.schedule == "on", prefetch=flags.prefetch, policy=policy, scope=scope)
    load = _load(flags, model, trace)
    chosen, baseline = (
        summary(simulate(load, costs, fraction, each, seed=flags.seed), costs) for each in (parts, BASELINE)
    )
    ratios = {
        phase: baseline[phase]["seconds_per_step"] / chosen[phase]["seconds_per_step"]
        for phase in ("prefill", "decode")
        if phase in chosen
    }
    return {
        "version": VERSION,
        "simulated": True,
        "label": LABEL,
        "machine": costs.words,
        "times": {
            name: None if value == float("inf") else value for name, value in costs.times._asdict().items()
        },
        "model": model.name,
        "dtype": flags.dtype,
        "routing": load.words,
        "fraction": fraction,
        "slots": int(load.shape.total * fraction),
        "parts": asdict(parts),
        "run": chosen,
        "baseline": baseline,
        "times_faster": ratios,
        "published": {
            "qwen2-57b-a14b at 25 %": {phase: dict(PAPER[phase]) for phase in PAPER},
            "mean": dict(PAPER_MEAN),
        },
    }


def _load(flags: TimelineFlags, model: ModelSizes, trace: Path | None) -> Load:
    from braid.sim.experts.routes import read_routes
    from braid.sim.experts.study import recorded_load, synthetic_load

    if not model.num_experts:
        raise InvalidParameterError(f"{model.name} has no experts", param="model")
    for name in ("prompt", "tokens"):
        if getattr(flags, name) < 1:
            raise InvalidParameterError(f"{name} must be at least 1, got {getattr(flags, name)}", param=name)
    if trace is not None:
        return recorded_load(model, read_routes(trace), trace.name)
    return synthetic_load(model, prompt=flags.prompt, decodes=flags.tokens, seed=flags.seed)


def _show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from braid.cli.trace.console import print_table

    parts = report["parts"]
    title = (
        f"{report['model']}, {report['fraction']:.0%} of the experts in {report['slots']:,} slots; {LABEL}"
    )
    table = Table(title=title, title_justify="left")
    for name in (
        "",
        "ms",
        "baseline ms",
        "times faster",
        "held",
        "computed below",
        "fetched",
        "early",
        "link busy",
    ):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for phase, ratio in report["times_faster"].items():
        run, baseline = report["run"][phase], report["baseline"][phase]
        table.add_row(
            phase,
            f"{run['seconds_per_step'] * 1e3:.1f}",
            f"{baseline['seconds_per_step'] * 1e3:.1f}",
            f"{ratio:.2f}",
            *(f"{run[name]:.1%}" for name in ("hit_rate", "slow_share", "fetched_share")),
            str(run["early_transfers"]),
            f"{run['link_busy_share']:.0%}",
        )
    console = Console()
    print_table(console, table)
    means = report["published"]["mean"]
    for line in (
        f"parts: schedule {'on' if parts['schedule'] else 'off'}, prefetch {parts['prefetch']}, cache "
        f"{parts['policy']} ({parts['scope']}); baseline: a fixed set by frequency, misses computed below",
        f"times: {report['machine']}",
        f"routing: {report['routing']}",
        f"published of HybriMoE, mean over its models: {means['prefill']}x prefill, {means['decode']}x decode",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
