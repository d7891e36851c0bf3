from __future__ import annotations

import pytest

from braid.core.errors import CapacityError, InvalidParameterError
from braid.policy.agents.catalog import NAMES, ORACLES
from braid.policy.agents.program import Finish
from braid.sim.agents import AgentSetup, run_agents
from braid.sim.compare import combined, interval, numbers_of, ratio_of, run_all, summary_of
from braid.sim.executor import FixedTime, TierTime
from braid.sim.programs import Family, Text, Turn


def chain(number: int, lengths: list[tuple[int, int]], gap_s: float, streams: int = 0) -> Family:
    """A program whose prompts hold all before them: (new prompt tokens, output tokens) turn by turn."""
    turns, keys, toks = [], [], []
    for place, (new, out) in enumerate(lengths):
        keys.append(2 * place)
        toks.append(new)
        turns.append(
            Turn(
                member=0,
                after=(place - 1,) if place else (),
                delay_s=gap_s if place else 0.0,
                prompt=Text(tuple(keys), tuple(toks)),
                num_output=out,
                reply=Text((2 * place + 1,), (out,)),
                finish=Finish.TOOL if place < len(lengths) - 1 else Finish.TEXT,
                tool="bash" if place < len(lengths) - 1 else None,
            )
        )
        keys.append(2 * place + 1)
        toks.append(out)
    return Family(name=str(number), turns=tuple(turns), parents=(-1,), num_streams=2 * len(lengths))


def setup(**fields: object) -> AgentSetup:
    known: dict[str, object] = {
        "cost": FixedTime(0.1),
        "machine": "a tenth of a second per step",
        "rate": 1.0,
        "num_programs": 1,
        "kv_tokens": 4096,
        "max_model_len": 1024,
        "block_size": 16,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
    }
    return AgentSetup(**(known | fields))  # type: ignore[arg-type]


def test_one_program_by_hand() -> None:
    """60 and 20 more tokens: one step each for the prompts, 3 more for 4 outputs; a gap of 2 s between."""
    run = run_agents([chain(0, [(60, 4), (20, 4)], 2.0)], setup(), "lru", seed=0)
    assert run.jct_s == pytest.approx((2 * 0.4 + 2.0,))
    assert run.ttft_first_s == pytest.approx((0.1,))
    assert run.ttft_later_s == pytest.approx((0.1,))
    # Of 60 + 4 tokens the last one's KV is never computed, so 3 blocks are full.
    assert run.tokens == {
        "device_hit": 48,
        "host_reload": 0,
        "disk_reload": 0,
        "recompute": 0,
        "compulsory": 60 + 84 - 48,
    }


def test_what_was_evicted_is_recomputed_and_not_compulsory() -> None:
    families = [chain(number, [(200, 8)] * 4, 5.0) for number in range(6)]
    run = run_agents(families, setup(num_programs=6, rate=10.0, kv_tokens=1024), "lru", seed=0)
    assert run.tokens["recompute"] > 0
    roomy = run_agents(families, setup(num_programs=6, rate=10.0, kv_tokens=65_536), "lru", seed=0)
    assert roomy.tokens["recompute"] == 0
    assert run.tokens["compulsory"] == pytest.approx(roomy.tokens["compulsory"], rel=0.05)
    assert sum(roomy.tokens.values()) == 6 * sum(200 * (k + 1) + 8 * k for k in range(4))


FAMILIES = [chain(number, [(100 + 10 * number, 12)] * 5, 1.0 + number) for number in range(6)]
BUSY = setup(num_programs=9, rate=2.0, kv_tokens=2048)


@pytest.mark.parametrize("policy", [*NAMES, *ORACLES])
def test_every_policy_ends_every_program_and_twice_alike(policy: str) -> None:
    runs = [run_agents(FAMILIES, BUSY, policy, seed=1) for _ in range(2)]
    assert runs[0] == runs[1]
    run = runs[0]
    assert (len(run.jct_s), len(run.ttft_first_s), len(run.ttft_later_s)) == (9, 9, 36)
    assert not run.num_refused
    assert min(run.jct_s) >= 4 * 1.0 + 5 * 1.2


@pytest.mark.parametrize("grain", [2, 4])
def test_a_grain_changes_little(grain: int) -> None:
    families = [chain(number, [(640, 128)] * 3, 3.0) for number in range(4)]
    exact, coarse = (
        run_agents(
            families,
            setup(num_programs=4, kv_tokens=8192, max_model_len=4096, grain=each, max_num_batched_tokens=256),
            "lru",
            seed=0,
        )
        for each in (1, grain)
    )
    assert sum(coarse.jct_s) == pytest.approx(sum(exact.jct_s), rel=0.05)
    assert sum(coarse.tokens.values()) == sum(exact.tokens.values())
    assert coarse.num_steps < exact.num_steps / (0.7 * grain)


def test_wrong_setups_are_told() -> None:
    with pytest.raises(InvalidParameterError, match=r"divide the block size \(16\), got 3"):
        setup(grain=3)
    with pytest.raises(CapacityError, match="holds 512 tokens"):
        setup(kv_tokens=512)
    with pytest.raises(InvalidParameterError, match="unknown agent policy 'best'"):
        run_agents(FAMILIES, BUSY, "best", 0)


def test_policies_hear_how_turns_end_and_how_long_gaps_are() -> None:
    """A hold of 2 s runs out in gaps of 5 s, and is handed over in gaps of 1 s."""
    slow, quick = (
        run_agents([chain(number, [(100, 12)] * 3, gap_s) for number in range(3)], BUSY, "pin-2s", seed=0)
        for gap_s in (5.0, 1.0)
    )
    # After the first turn of all: then the mean gap is above 2 s, and nothing is held any more.
    assert slow.kept["expired"] > 0
    assert quick.kept["expired"] == 0
    assert quick.kept["handed over"] == 18


def test_a_tier_below_brings_back_what_was_evicted() -> None:
    families = [chain(number, [(200, 8)] * 4, 5.0) for number in range(6)]
    small = {"num_programs": 6, "rate": 10.0, "kv_tokens": 1024}
    without = run_agents(families, setup(**small), "lru", seed=0)
    tiers = TierTime(latency=0.001, host=0.0001)
    below = run_agents(families, setup(**small, host_kv_tokens=65_536, tiers=tiers), "lru", seed=0)
    assert below.tokens["host_reload"] > 0
    assert below.tokens["recompute"] < without.tokens["recompute"]
    assert below.tokens["compulsory"] == pytest.approx(without.tokens["compulsory"], rel=0.05)
    with pytest.raises(InvalidParameterError, match="need times"):
        setup(host_kv_tokens=64)
    with pytest.raises(InvalidParameterError, match="disk_kv_tokens must be at least 0, got -1"):
        setup(disk_kv_tokens=-1)


def test_several_seeds_have_means_and_intervals() -> None:
    runs = run_all(FAMILIES, BUSY, ("lru", "program-fcfs"), (0, 1, 2))
    summary = summary_of(runs["lru"])
    means = [numbers_of(run)["jct_s"]["mean"] for run in runs["lru"]]
    assert summary["jct_s"]["mean"] == pytest.approx(sum(means) / 3)
    low, high = summary["intervals"]["jct_s"]["mean"]
    assert low < summary["jct_s"]["mean"] < high
    assert [entry["seed"] for entry in summary["seeds"]] == [0, 1, 2]
    assert ratio_of(runs["lru"], runs["lru"])["jct_ratio"] == 1.0
    assert summary_of(runs["lru"][:1])["jct_s"]["mean"] == means[0]


def test_an_interval_by_hand() -> None:
    # Mean 2, deviation 1, of 3 values: 4.303 / sqrt(3) each way.
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert combined([{"a": 1.0, "b": {"c": 2.0}}, {"a": 3.0, "b": {"d": 4.0}}], max) == {
        "a": 3.0,
        "b": {"c": 2.0, "d": 4.0},
    }
