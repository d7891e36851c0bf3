"""Prefill and decode on this machine: one step for both, or a lane for each? The real engine, every mode, interleaved.

Four workloads: long prompts back to back while streams decode; a bursty stretch of requests (``--trace`` Azure's code
trace of 2023; made up without it); agents' programs that resend their history; and a light load. Every mode gets an
engine of its own in every round; rounds rotate the order. ``mixed:N`` are serial modes with chunks of N tokens,
``layered:N`` those with N layers of a chunk at a time: the best of them at the lanes' TTFT is what lanes are compared
with. ``goodput`` counts requests per second (DistServe, arXiv 2401.09670) of which every token but one in a hundred
came in time: the first within the TTFT limit, any other within the TBT limit of the one before. ``in_time_tok_s``
counts such tokens one by one, so that somebody who stands still for seconds costs one.

``python benchmarks/phases.py [MODEL | generated] [--modes ...] [--trace FILE] [--quick] [--json OUT]``
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from common import describe, machine, random_prompt, save, show
from phases_cost import SWITCH, Steps, scaling, switch_cost, watch
from phases_model import generate
from phases_work import LARGE_MODEL, QUICK, STREAM, Course, Size, Workload, play, workloads

from braid import LLM, SamplingParams
from braid.core.metrics import percentile

MODES = "mixed,mixed:64,mixed:32,layered:1,layered:2,layered:3,prefill-first,static:50/50,static:100/100,split,auto"
QUICK_MODES = "auto,mixed:64,layered:1,prefill-first,static:50/50,mixed"
QUICK_S = 140.0
"""From the start, after which ``--quick`` begins no other mode, so that it ends within some three minutes."""
QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
SAME_TTFT = 0.06
SERIAL = ("mixed", "layered")
"""Whose chunks, or layers of a chunk, are tuned to the TTFT that lanes have."""

Numbers = dict[str, Any]


class Run(NamedTuple):
    """One workload on one engine; ``switches`` are changes of the division between phases, where they are counted."""

    course: Course
    steps: Steps
    switches: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "model", nargs="?", default="smollm2", help="or generated: a larger one with random weights"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--modes")
    parser.add_argument("--workloads", help="some of: long prompts, burst, agents, light")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--trace", type=Path, help="AzureLLMInferenceTrace_code_2023.csv")
    parser.add_argument("--slo-ttft-ms", type=float, default=12_000)
    parser.add_argument("--slo-tbt-ms", type=float, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small workloads, one round: a smoke test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.modes = (options.modes or (QUICK_MODES if options.quick else MODES)).split(",")
    options.rounds = options.rounds or (1 if options.quick else 2)
    return options


@contextmanager
def engine(options: argparse.Namespace, model: str, **more: Any) -> Iterator[LLM]:
    """Warmed up, so that no mode pays for what is done once."""
    llm = LLM(model, options.dtype, max_num_seqs=16, kv_cache_memory=640 << 20, **more)
    try:
        warm = [
            random_prompt(length, llm.info.vocab_size, 9_000_000 + length) for length in (200, 20, 21, 22)
        ]
        llm.generate(warm, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        yield llm
    finally:
        llm.close()


def one_run(
    options: argparse.Namespace, model: str, mode: str, number: int
) -> dict[str, tuple[Course, Steps]]:
    """All workloads on a new engine."""
    found = {}
    limits = {
        "slo_ttft_ms": options.slo_ttft_ms,
        "slo_tbt_ms": options.slo_tbt_ms,
        "threads": options.threads,
    }
    with engine(options, model, phases=mode, **limits) as llm:
        steps = watch(llm)
        for work in work_of(options, llm.info.vocab_size):
            steps.clear()
            before = _switches(llm)
            course = play(llm, work.clients(number), work.begin_s)
            found[work.name] = Run(course, steps.copy(), _switches(llm) - before)
    return found


def _switches(llm: LLM) -> float:
    return llm.stats().policy_state.get("phases_switches", 0.0)


def work_of(options: argparse.Namespace, vocab_size: int) -> list[Workload]:
    every = workloads(size_of(options), vocab_size, options.trace, options.seed)
    return [work for work in every if options.workloads is None or work.name in options.workloads.split(",")]


def size_of(options: argparse.Namespace) -> Size:
    if options.quick:
        return QUICK
    return LARGE_MODEL if options.model == "generated" else Size()


def numbers_of(runs: Sequence[Run], options: argparse.Namespace) -> Numbers:
    """Of one mode and workload; all rounds' requests together, rates over all their seconds."""
    courses = [run.course for run in runs]
    limits = options.slo_ttft_ms / 1000, options.slo_tbt_ms / 1000
    parts = [_counted(course, *limits) for course in courses]
    seconds = sum(course.end - course.begin for course in courses)
    tbts = [1000 * value for part in parts for value in part["tbts"]]
    ttfts = [1000 * value for part in parts for value in part["ttfts"]]
    rates = {
        name: sum(part[name] for part in parts) / seconds
        for name in ("decode", "prefill", "good", "requests")
    }
    return {
        "tbt_ms": _quantiles(tbts),
        "ttft_ms": _quantiles(ttfts),
        "ttft_mean_ms": sum(ttfts) / len(ttfts) if ttfts else None,
        "decode_tok_s": rates["decode"],
        "prefill_tok_s": rates["prefill"],
        "goodput": rates["requests"],
        "in_time_tok_s": rates["good"],
        "attainment": {
            "ttft": _share(ttfts, options.slo_ttft_ms),
            "tbt": _share(tbts, options.slo_tbt_ms),
        },
        "switches_s": sum(run.switches for run in runs) / seconds,
        "prefix_hits": sum(part["hits"] for part in parts),
        "seconds": seconds,
    }


def _counted(course: Course, ttft_limit: float, tbt_limit: float) -> Numbers:
    """Counts of one run, of what happened after its beginning."""
    found: Numbers = {"tbts": [], "ttfts": [], "decode": 0, "prefill": 0, "good": 0, "requests": 0, "hits": 0}
    for asked in course.asked:
        gaps = [gap for at, gap in asked.tbts if at >= course.begin]
        found["tbts"] += gaps
        found["decode"] += len(gaps)
        in_time = sum(gap <= tbt_limit for gap in gaps)
        is_first_good = True
        if asked.kind != STREAM and asked.ttft is not None:
            found["ttfts"].append(asked.ttft)
            found["prefill"] += asked.num_prompt - asked.num_cached
            found["hits"] += asked.num_cached
            is_first_good = asked.ttft <= ttft_limit
            found["good"] += is_first_good
        found["good"] += in_time
        found["requests"] += is_first_good and len(gaps) - in_time <= len(gaps) / 100
    return found


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {name: percentile(values, q) for name, q in QUANTILES.items()} if values else {}


def _share(values: Sequence[float], limit: float) -> float | None:
    return sum(value <= limit for value in values) / len(values) if values else None


def versus(found: Mapping[str, Numbers]) -> Numbers:
    """The comparisons that count, of one workload."""
    lanes = next((name for name in ("auto", "split") if name in found), None)
    if lanes is None:
        return {}
    mine = found[lanes]
    fixed = {name: numbers for name, numbers in found.items() if name not in ("auto", "split")}
    result: Numbers = {"of": lanes}
    for title, prefixes in (("tuned_serial", SERIAL), ("tuned_mixed", ("mixed",))):
        serial = {name: numbers for name, numbers in fixed.items() if name.startswith(prefixes)}
        if serial:
            tuned = _tuned(serial, mine)
            result[title] = _ratios(tuned, serial[tuned], mine)
    if "prefill-first" in fixed:
        result["prefill_first"] = _ratios("prefill-first", fixed["prefill-first"], mine)
    static = {name: numbers for name, numbers in fixed.items() if name.startswith("static")}
    if "mixed" in fixed:
        result["mixed"] = _ratios("mixed", fixed["mixed"], mine)
    for title, group in (("best_static", static), ("best_fixed", fixed)):
        if group:
            best = max(group, key=lambda name: group[name]["goodput"])
            result[title] = _ratios(best, group[best], mine)
    return result


def _tuned(serial: Mapping[str, Numbers], mine: Numbers) -> str:
    """Of those whose TTFT is that of ``mine`` the one with the shortest long gaps; else the one that comes nearest."""
    off = {
        name: abs(numbers["ttft_ms"]["p50"] / mine["ttft_ms"]["p50"] - 1) for name, numbers in serial.items()
    }
    equal = [name for name in serial if off[name] <= SAME_TTFT]
    if equal:
        return min(equal, key=lambda name: serial[name]["tbt_ms"]["p99"])
    return min(off, key=lambda name: off[name])


def _ratios(name: str, other: Numbers, mine: Numbers) -> Numbers:
    """Above 1 where lanes are better; but for ``ttft``, which is theirs over the other's."""
    mean = [numbers["ttft_mean_ms"] for numbers in (mine, other)]
    return {
        "mode": name,
        "ttft": mine["ttft_ms"]["p50"] / other["ttft_ms"]["p50"],
        "ttft_mean": mean[0] / mean[1],
        "is_equal_ttft": abs(mine["ttft_ms"]["p50"] / other["ttft_ms"]["p50"] - 1) <= SAME_TTFT,
        "tbt_p99": other["tbt_ms"]["p99"] / mine["tbt_ms"]["p99"],
        "decode": mine["decode_tok_s"] / other["decode_tok_s"],
        "prefill": mine["prefill_tok_s"] / other["prefill_tok_s"],
        "in_time": _ratio(mine["in_time_tok_s"], other["in_time_tok_s"]),
        "goodput": _ratio(mine["goodput"], other["goodput"]),
    }


def _ratio(mine: float, other: float) -> float | None:
    """None where the other did nothing good at all."""
    return mine / other if other else None


def show_workload(name: str, found: Mapping[str, Numbers]) -> None:
    rows = []
    for mode, numbers in found.items():
        tbt, ttft = numbers["tbt_ms"], numbers["ttft_ms"]
        rows.append(
            {
                "mode": mode,
                **{f"TBT {quantile}": tbt.get(quantile, float("nan")) for quantile in ("p50", "p99", "max")},
                **{f"TTFT {quantile}": ttft.get(quantile, float("nan")) for quantile in ("p50", "p99")},
                "decode/s": numbers["decode_tok_s"],
                "prefill/s": numbers["prefill_tok_s"],
                "in time/s": numbers["in_time_tok_s"],
                "goodput": numbers["goodput"],
                "TTFT ok": _percent(numbers["attainment"]["ttft"]),
                "TBT ok": _percent(numbers["attainment"]["tbt"]),
            }
        )
    show(f"{name}: milliseconds, tokens per second, and good requests per second", rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def show_versus(found: Mapping[str, Any]) -> None:
    for against, ratios in found.items():
        if against == "of":
            continue
        note = "" if ratios["is_equal_ttft"] else " (TTFT is not equal)"
        name = f"{against.replace('_', ' ')} ({ratios['mode']})"
        words = {
            "tbt_p99": "p99 TBT {} lower",
            "decode": "decode {}",
            "prefill": "prefill {}",
            "in_time": "in time {}",
        }
        words |= {"goodput": "goodput {}", "ttft": "TTFT p50 {}", "ttft_mean": "TTFT mean {}"}
        parts = [
            text.format("-" if ratios[key] is None else f"{ratios[key]:.2f}x") for key, text in words.items()
        ]
        print(f"  {found['of']} against {name}: {', '.join(parts)}{note}")


def measure(options: argparse.Namespace, model: str, result: dict[str, Any], start: float) -> None:
    """All rounds; what is there is saved after each. ``start`` of everything is on ``time.perf_counter``."""
    runs: dict[str, dict[str, list[Run]]] = {}
    for number in range(options.rounds):
        turn = number % len(options.modes)
        for mode in (*options.modes[turn:], *options.modes[:turn]):
            begun = time.perf_counter()
            if options.quick and begun - start > QUICK_S:
                print(f"left out, since there is no time for it: {mode}", flush=True)
                continue
            for name, run in one_run(options, model, mode, number).items():
                runs.setdefault(name, {mode: [] for mode in options.modes})[mode].append(run)
            print(f"round {number + 1}, {mode}: {time.perf_counter() - begun:.0f} s", flush=True)
        result |= summed(runs, options)
        save(options.json, result)


def summed(runs: Mapping[str, Mapping[str, Sequence[Run]]], options: argparse.Namespace) -> Numbers:
    """By workload and mode: all rounds together, each round, and how soon steps started."""
    found = {
        name: {mode: numbers_of(those, options) for mode, those in modes.items() if those}
        for name, modes in runs.items()
    }
    return {
        "workloads": found,
        "versus": {name: versus(numbers) for name, numbers in found.items()},
        "rounds": {
            name: {
                mode: [numbers_of([run], options) for run in those] for mode, those in modes.items() if those
            }
            for name, modes in runs.items()
        },
        "starts": {
            mode: Steps.together([run.steps for modes in runs.values() for run in modes[mode]]).starts()
            for mode in options.modes
        },
    }


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options, start = arguments(), time.perf_counter()
    described = machine()
    print(describe(described))
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    size = asdict(size_of(options))
    result: dict[str, Any] = {"machine": described, "config": config | {"size": size}}
    with tempfile.TemporaryDirectory() as folder:
        model = generate(Path(folder)) if options.model == "generated" else options.model
        result["switch"] = switch_cost()
        result["switch_us"] = next((row for row in result["switch"] if row["what"] == SWITCH), None)
        result["scaling"] = scaling(lambda **more: engine(options, model, **more), is_quick=options.quick)
        measure(options, model, result, start)
    for name, numbers in result["workloads"].items():
        show_workload(name, numbers)
        show_versus(result["versus"][name])
    show("a step's start after its lane was given other units, microseconds", result["switch"])
    show("each phase alone and both at once", result["scaling"]["rows"])
    print(result["scaling"]["words"])


if __name__ == "__main__":
    main()
