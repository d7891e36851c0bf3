"""The parts of a replay that need no server: who plays how much, what has no outcome, and what a sender needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import polars as pl
import pytest

from braid.core.errors import InvalidParameterError
from braid.lab.replay.outcome import Outcome
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.replay.run import RunOptions, machine, num_senders, slots
from braid.lab.replay.supervise import ReplayError, Senders, missing, read_outcomes, records
from braid.lab.table import Trace, TraceInfo, conform


def plan_of(num: int, span_s: float, **options: object) -> ReplayPlan:
    times = [span_s * place / max(num - 1, 1) for place in range(num)]
    frame = pl.DataFrame({"t_s": times, "in_tok": [5] * num, "out_tok": [2] * num})
    return build_plan(Trace(conform(frame), TraceInfo(source="t")), PlanOptions(**options))  # type: ignore[arg-type]


def test_few_requests_have_one_sender_and_many_per_second_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid.lab.replay.run._cores", lambda: 8)
    assert num_senders(plan_of(90, 0.0), RunOptions()) == 1  # all at once, but few
    assert num_senders(plan_of(300, 10.0), RunOptions()) == 1
    assert num_senders(plan_of(300, 1.0), RunOptions()) == 2
    assert num_senders(plan_of(3, 1.0), RunOptions(num_senders=3)) == 3
    monkeypatch.setattr("braid.lab.replay.run._cores", lambda: 1)
    assert num_senders(plan_of(300, 1.0), RunOptions()) == 1


def test_slots_add_up_to_the_concurrency() -> None:
    plan = plan_of(9, 1.0, arrivals="concurrency", concurrency=2)
    assert num_senders(plan, RunOptions(num_senders=4)) == 2
    assert num_senders(plan, RunOptions()) == 1
    assert (slots(5, 2), slots(4, 4), slots(2, 1)) == ((3, 2), (1, 1, 1, 1), (2,))


@pytest.mark.parametrize("wrong", [{"timeout_s": 0.0}, {"max_retries": -1}, {"measure_s": float("nan")}])
def test_senseless_options_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        RunOptions(**wrong)  # type: ignore[arg-type]


def record(number: int) -> bytes:
    data = msgspec.msgpack.encode(Outcome(request=number, status="ok"))
    return len(data).to_bytes(4, "little") + data


def test_a_last_record_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    whole = record(3) + record(70_000)
    for cut in range(1, len(record(70_000)) + 1):
        assert [outcome.request for outcome in records(whole[:-cut])] == [3]
    assert [outcome.request for outcome in records(whole)] == [3, 70_000]


def test_outcomes_that_cannot_be_right_are_problems(tmp_path: Path) -> None:
    (tmp_path / "outcomes-0.mp").write_bytes(record(0) + record(1))
    (tmp_path / "outcomes-1.mp").write_bytes(record(1) + b"\x01\x00\x00\x00\xc1")
    outcomes, problems = read_outcomes(tmp_path, 3)
    assert sorted(outcome.request for outcome in outcomes) == [0, 1, 1]
    assert len(problems) == 2
    assert problems[0].startswith("the outcomes of sender 1 cannot be read")
    assert problems[1] == "1 requests have two outcomes, such as request 1"


def test_what_has_no_outcome_was_not_sent() -> None:
    lost = missing([0, 1, 1, 2], [Outcome(request=2, status="ok")], ["a", "b"])
    assert [(outcome.request, outcome.status, outcome.reason) for outcome in lost] == [
        (0, "unsent", "a"),
        (1, "unsent", "b"),
        (3, "unsent", "a"),
    ]


def test_a_sender_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"sender 0 did not start: .*run\.json"), Senders(tmp_path, 1):
        pytest.fail("it started")


def test_senders_load_no_tables() -> None:
    heavy = "{'polars', 'scipy', 'matplotlib', 'rich'}"
    code = f"import braid.lab.replay.sending.sender, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_machine_is_described() -> None:
    assert "cores" in machine()
    assert "Python 3" in machine()
