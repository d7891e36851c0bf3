"""How fast the production scheduler steps: 1,000 simulated requests, and one step of 8 decodes.

Run: python benchmarks/scheduler.py [--requests 1000] [--repeats 3]

The target is less than 2 s of one core for 1,000 requests, and less than 100 microseconds for planning and
taking in a step of 8 decodes. The simulation's time is processor time; a step is too short for that clock,
so its time is wall time, and other load on the machine shows in its high percentiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time

from braid.core.request import Request
from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, StepResult
from braid.device.machine import probe
from braid.sched.config import MIXED, SchedulerConfig
from braid.sched.scheduler import Scheduler
from braid.sim.executor import FixedTime
from braid.sim.run import Arrival, simulate

CONFIG = SchedulerConfig(num_blocks=3000, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=2048)


def trace(count: int) -> list[Arrival]:
    """Poisson arrivals, 20 to 600 prompt tokens, 1 to 200 output tokens, all uniform; seed 1."""
    rng = random.Random(1)
    arrivals, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(20.0)
        arrivals.append(Arrival(now, rng.randrange(20, 600), rng.randrange(1, 200)))
    return arrivals


def time_simulation(count: int) -> tuple[float, int, int]:
    """Processor seconds, steps and generated tokens."""
    arrivals = trace(count)
    begin = time.process_time()
    report = simulate(arrivals, CONFIG, FixedTime(0.02))
    return time.process_time() - begin, report.stats.num_steps, report.stats.generation_tokens


def time_decode_steps(num_seqs: int = 8, num_steps: int = 1000) -> list[float]:
    """Wall seconds of tick, schedule and update, one value per step."""
    scheduler = Scheduler(CONFIG)
    params = SamplingParams(temperature=0, max_tokens=num_steps, ignore_eos=True)
    for index in range(num_seqs):
        request = Request(request_id=str(index), prompt_token_ids=(index,) * 380, params=params)
        scheduler.add(request, 0.0)
    seconds = []
    now = 0.0
    while scheduler.has_unfinished:
        begin = time.perf_counter()
        scheduler.tick(now)
        plan = scheduler.schedule(MIXED, now)
        planned = time.perf_counter() - begin
        assert plan is not None
        now += 1.0
        tokens = {work.request_id: SampledToken(1) for work in plan.works if work.sample is not None}
        result = StepResult(plan.step_id, MIXED, now - 1, 1.0, tokens)
        begin = time.perf_counter()
        scheduler.update(result, now)
        if all(work.is_decode for work in plan.works) and len(plan.works) == num_seqs:
            seconds.append(planned + time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    machine = probe()
    load = os.getloadavg()[0]
    print(f"{machine.cpu_name}, {machine.cores} cores, Python {platform.python_version()}, load {load:.1f}")
    for _ in range(options.repeats):
        seconds, steps, tokens = time_simulation(options.requests)
        print(
            f"{options.requests} requests: {seconds:.2f} s of one core, {steps} steps, {tokens} tokens, "
            f"{options.requests / seconds:.0f} requests/s, {tokens / seconds:.0f} tokens/s"
        )
        steps_us = sorted(1e6 * value for value in time_decode_steps())
        print(
            f"one step of 8 decodes: median {statistics.median(steps_us):.0f} us, "
            f"99th percentile {steps_us[int(len(steps_us) * 0.99)]:.0f} us"
        )


if __name__ == "__main__":
    main()
