"""How fast the production scheduler steps: 1,000 simulated requests, one step of 8 decodes, and 1,000 live programs.

Run: python benchmarks/scheduler.py [--requests 1000] [--repeats 3] [--programs 1000] [--policies lru,braid]

The target is less than 2 s of one core for 1,000 requests, and less than 100 microseconds for planning and
taking in a step of 8 decodes. All times are the processor's, so that other load on the machine shows in them little.

Programs: a third of them idle, most others waiting, 64 running, in a third of the memory that they need. What a policy
costs is the difference between its steps' time and that of ``lru``; the target is 1 ms. A step's time is that of all
that the loop calls: adding, telling, tick, schedule and update; and, as repeats do the same, the least of the repeats.
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
import random
import statistics
import time

from braid.core.program import ProgramRef
from braid.core.request import Request
from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, StepResult
from braid.device.machine import probe
from braid.policy.agents.catalog import agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.program import Finish
from braid.sched.config import MIXED, Policies, SchedulerConfig
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
    """Processor seconds of tick, schedule and update, one value per step."""
    scheduler = Scheduler(CONFIG)
    params = SamplingParams(temperature=0, max_tokens=num_steps, ignore_eos=True)
    for index in range(num_seqs):
        request = Request(request_id=str(index), prompt_token_ids=(index,) * 380, params=params)
        scheduler.add(request, 0.0)
    seconds = []
    now = 0.0
    while scheduler.has_unfinished:
        begin = time.thread_time()
        scheduler.tick(now)
        plan = scheduler.schedule(MIXED, now)
        planned = time.thread_time() - begin
        assert plan is not None
        now += 1.0
        tokens = {work.request_id: SampledToken(1) for work in plan.works if work.sample is not None}
        result = StepResult(plan.step_id, MIXED, now - 1, 1.0, tokens)
        begin = time.thread_time()
        scheduler.update(result, now)
        if all(work.is_decode for work in plan.works) and len(plan.works) == num_seqs:
            seconds.append(planned + time.thread_time() - begin)
    return seconds


class Programs:
    """Programs in a closed loop: a turn, a gap, and the next turn, whose prompt is longer; at 4,000 tokens anew.

    Steps take 50 ms; gaps are log-normal with a median of 10 s.
    """

    CONFIG = SchedulerConfig(
        num_blocks=50_000, max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=4500
    )
    STEP_S = 0.05
    COMMON = (7,) * 320
    """What all prompts begin with."""

    def __init__(self, policy: str, count: int) -> None:
        costs = LearntCosts()
        self._rng = random.Random(1)
        self.scheduler = Scheduler(self.CONFIG, Policies(agents=agent_policy(policy, costs), costs=costs))
        self.texts = [self._text(index, self._rng.randrange(400, 3600)) for index in range(count)]
        self.due = [(self._rng.uniform(0, 20), index) for index in range(count)]
        heapq.heapify(self.due)
        self.requests: dict[str, tuple[int, Request]] = {}
        self.now = 0.0

    def step(self) -> float:
        """Processor seconds."""
        arrivals = self._arrivals()
        begin = time.thread_time()
        for request in arrivals:
            self.scheduler.add(request, self.now)
        self.scheduler.tick(self.now)
        plan = self.scheduler.schedule(MIXED, self.now)
        seconds = time.thread_time() - begin
        self.now += self.STEP_S
        if plan is None:
            return seconds
        tokens = {work.request_id: SampledToken(5) for work in plan.works if work.sample is not None}
        result = StepResult(plan.step_id, MIXED, self.now - self.STEP_S, self.STEP_S, tokens)
        begin = time.thread_time()
        ended = [delta.request_id for delta in self.scheduler.update(result, self.now) if delta.finish_reason]
        for name in ended:
            ref = self.requests[name][1].program
            assert ref is not None
            self.scheduler.told(ref, Finish.TOOL, "bash", self.now)
        seconds += time.thread_time() - begin
        for name in ended:
            self._rest(name)
        return seconds

    def states(self) -> tuple[int, int, int]:
        """Programs that are idle, that wait, and that run."""
        stats = self.scheduler.stats()
        return len(self.due), stats.num_waiting, stats.num_running

    def _text(self, index: int, length: int) -> tuple[int, ...]:
        return (*self.COMMON, *((1000 + index,) * (length - len(self.COMMON))))

    def _arrivals(self) -> list[Request]:
        found = []
        params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        while self.due and self.due[0][0] <= self.now:
            _, index = heapq.heappop(self.due)
            name = f"{index}-{self.now}"
            ref = ProgramRef(owner="", program=str(index))
            request = Request(
                request_id=name,
                prompt_token_ids=self.texts[index],
                params=params,
                arrival_time=self.now,
                program=ref,
            )
            self.requests[name] = index, request
            found.append(request)
        return found

    def _rest(self, name: str) -> None:
        """A tool works, and its result is what the next prompt ends with."""
        index, request = self.requests.pop(name)
        text = (*request.token_ids, *((3000,) * self._rng.randrange(20, 200)))
        self.texts[index] = text if len(text) < 4000 else self._text(index, 400)
        heapq.heappush(self.due, (self.now + self._rng.lognormvariate(2.3, 1.2), index))


def time_programs(policy: str, count: int, num_steps: int) -> tuple[list[float], tuple[int, int, int]]:
    """Processor seconds of each of the later steps, and the programs' states at the end."""
    programs = Programs(policy, count)
    for _ in range(num_steps):
        programs.step()
    return [programs.step() for _ in range(num_steps)], programs.states()


def report_programs(policies: list[str], count: int, num_steps: int, repeats: int) -> None:
    runs: dict[str, list[tuple[list[float], tuple[int, int, int]]]] = {policy: [] for policy in policies}
    for _ in range(repeats):
        for policy in policies:
            runs[policy].append(time_programs(policy, count, num_steps))
    for policy, repeated in runs.items():
        idle, waiting, running = repeated[0][1]
        steps_us = sorted(1e6 * min(same) for same in zip(*(seconds for seconds, _ in repeated), strict=True))
        print(
            f"{count} programs ({idle} idle, {waiting} waiting, {running} running), {policy}: "
            f"a step takes {statistics.mean(steps_us):.0f} us, median {statistics.median(steps_us):.0f} us, "
            f"99th percentile {steps_us[int(len(steps_us) * 0.99)]:.0f} us"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--policies", default="lru,braid")
    parser.add_argument("--steps", type=int, default=2000)
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
    report_programs(options.policies.split(","), options.programs, options.steps, options.repeats)


if __name__ == "__main__":
    main()
