"""Signs of life: what counts, lane by lane, and when an engine is given up."""

from __future__ import annotations

from braid.engine.heartbeat import BEATS, LOOP, Heartbeat, Pulse


def asked(heartbeat: Heartbeat, count: int) -> list[bool]:
    return [heartbeat.ask() for _ in range(count)]


def test_an_engine_that_never_answers_is_given_up() -> None:
    heartbeat = Heartbeat()
    assert asked(heartbeat, BEATS + 1) == [True] * BEATS + [False]
    assert heartbeat.stuck == (LOOP,)


def test_an_idle_engine_only_has_to_answer() -> None:
    heartbeat = Heartbeat()
    for _ in range(5 * BEATS):
        assert heartbeat.ask()
        heartbeat.hear(Pulse({}))


def test_a_busy_engine_has_to_get_on() -> None:
    heartbeat = Heartbeat()
    for progress in range(5 * BEATS):
        assert heartbeat.ask()
        heartbeat.hear(Pulse({"mixed": progress // (BEATS - 1)}))
    stuck = Pulse({"mixed": 1000})
    heartbeat.hear(stuck)
    for _ in range(BEATS):
        assert heartbeat.ask()
        heartbeat.hear(stuck)
    assert not heartbeat.ask()
    assert heartbeat.stuck == ("mixed",)


def test_a_lane_that_hangs_does_not_hide_behind_one_that_works() -> None:
    heartbeat = Heartbeat()
    for progress in range(BEATS + 1):
        heartbeat.hear(Pulse({"decode": progress, "prefill": 7}))
        given_up = not heartbeat.ask()
        assert given_up == (progress == BEATS)
    assert heartbeat.stuck == ("prefill",)


def test_a_lane_that_was_idle_in_between_begins_anew() -> None:
    heartbeat = Heartbeat()
    for _ in range(5):
        for _ in range(BEATS - 1):
            heartbeat.hear(Pulse({"decode": 1, "prefill": 7}))
            assert heartbeat.ask()
        heartbeat.hear(Pulse({}))
