"""Signs of life: what counts, and when an engine is given up."""

from __future__ import annotations

from braid.engine.heartbeat import BEATS, Heartbeat, Pulse


def asked(heartbeat: Heartbeat, count: int) -> list[bool]:
    return [heartbeat.ask() for _ in range(count)]


def test_an_engine_that_never_answers_is_given_up() -> None:
    assert asked(Heartbeat(), BEATS + 1) == [True] * BEATS + [False]


def test_an_idle_engine_only_has_to_answer() -> None:
    heartbeat = Heartbeat()
    for _ in range(5 * BEATS):
        assert heartbeat.ask()
        heartbeat.hear(Pulse(False, 7))


def test_a_busy_engine_has_to_get_on() -> None:
    heartbeat = Heartbeat()
    for progress in range(5 * BEATS):
        assert heartbeat.ask()
        heartbeat.hear(Pulse(True, progress // (BEATS - 1)))
    stuck = Pulse(True, 1000)
    heartbeat.hear(stuck)
    for _ in range(BEATS):
        assert heartbeat.ask()
        heartbeat.hear(stuck)
    assert not heartbeat.ask()
