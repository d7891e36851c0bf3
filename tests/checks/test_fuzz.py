"""Fuzzed requests against a real engine: none makes a server's error, kills it, or leaves a block behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .bodies import VALID
from .fuzz import CONFIG, Fuzzer, Report, from_json, fuzz, judge, send
from .served import real, scripted

REGRESSIONS = json.loads(Path(__file__).with_name("regressions.json").read_text())
SEED = 20_260_101


def check(report: Report) -> None:
    print(report)
    assert not report.faults, [(number, fault) for number, _, fault in report.faults[:10]]
    assert report.accepted.total() > report.statuses.total() / 5, report
    assert all(report.accepted[path] for path in VALID), report.accepted


async def test_six_hundred_requests(tiny_llama: Path) -> None:
    async with real(tiny_llama, CONFIG) as served:
        check(await fuzz(served, SEED, range(600)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_twenty_thousand_requests(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def progress(report: Report) -> None:
        if report.statuses.total() % 1000 == 0:
            with capsys.disabled():
                print(report, flush=True)

    async with real(tiny_llama, CONFIG) as served:
        check(await fuzz(served, SEED + 1, range(20_000), progress))


@pytest.mark.parametrize("entry", REGRESSIONS, ids=lambda entry: entry["name"])
async def test_what_once_was_a_fault(entry: dict[str, str]) -> None:
    async with scripted(reply="ok") as served:
        outcome = await send(served.client, from_json(entry))
        assert outcome.fault is None
        assert outcome.status == int(entry["status"])


def test_a_case_depends_on_seed_and_number_alone() -> None:
    for number in range(50):
        assert Fuzzer(1).case(number) == Fuzzer(1).case(number)
    assert Fuzzer(1).case(0) != Fuzzer(2).case(0)


async def test_the_judge_sees_faults() -> None:
    """An engine that fails, in an answer and within a stream."""
    async with scripted(error=RuntimeError("injected"), fail_after=5) as served:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
            for stream in (False, True):
                answer = await served.client.post(
                    path, json={**VALID[path], "max_tokens": 9, "stream": stream}
                )
                if path == "/v1/responses":
                    body = {**VALID[path], "max_output_tokens": 9, "stream": stream}
                    answer = await served.client.post(path, json=body)
                case = Fuzzer(0).case(0)._replace(path=path)
                assert judge(case, answer) is not None, (path, stream)
