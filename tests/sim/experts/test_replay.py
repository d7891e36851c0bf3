from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import ALL_NAMES, SCOPES
from braid.sim.experts.replay import EVERY_MISS, SERVED, Replay, ceiling, replay
from braid.sim.experts.routes import Route, Routes, read_routes

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "experts"


def routes(tokens: Sequence[Sequence[int]], *, prompt: int = 0, layers: int = 1) -> Routes:
    """One expert per layer and token."""
    found = [
        Route(0, step, layer, step < prompt, (layer * 4 + expert,), (1.0,))
        for step, experts in enumerate(tokens)
        for layer, expert in enumerate(experts)
    ]
    return Routes(shape=ExpertShape(layers, 4, 1), routes=tuple(found))


def test_hits_are_counted_in_decode_only() -> None:
    told = routes([[0], [0], [1], [0], [2], [1]], prompt=2)
    lru = replay(told, "lru", 2, scope="global")
    assert (lru.prefill[0].hits, lru.prefill[0].misses) == (1, 1)
    assert (lru.decode[0].hits, lru.decode[0].misses) == (1, 3), "1 went for 2"
    assert lru.decode_hit_rate == 0.25
    assert replay(told, "belady", 2, scope="global").decode_hit_rate == 0.5
    assert ceiling(told.routes) == 0.5
    assert replay(told, "lru", 4, scope="global").decode_hit_rate == ceiling(told.routes)


def test_a_pool_below_the_cycle_is_a_cliff_for_lru() -> None:
    told = routes([[0, 0, 0]] * 8, layers=3)
    assert replay(told, "lru", 2, scope="global").decode_hit_rate == 0
    assert replay(told, "lru", 3, scope="global").decode_hit_rate == 7 / 8
    assert replay(told, "belady", 2, scope="global").decode_hit_rate > 0


def test_layers_that_a_token_lacks_are_left_out() -> None:
    told = Routes(
        shape=ExpertShape(2, 4, 1),
        routes=(
            Route(0, 0, 0, True, (1,), ()),
            Route(0, 1, 0, False, (1,), ()),
            Route(0, 1, 1, False, (5,), ()),
        ),
    )
    assert replay(told, "mrs", 8, scope="layer").by_layer == [1.0, 0.0]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_everything_is_counted_whatever_the_rules(name: str, scope: str) -> None:
    told = routes([[step * step % 4, step % 3] for step in range(20)], prompt=5, layers=2)
    best = replay(told, "belady", 4, scope=scope)
    for rules in (EVERY_MISS, SERVED):
        each = replay(told, name, 4, scope=scope, rules=rules)
        assert [counts.wanted for counts in each.decode] == [15, 15]
        if rules is EVERY_MISS and name != "static":
            assert each.bypass_rate == 0
            assert hits(each) <= hits(best), "whoever bypasses may find more"


def hits(each: Replay) -> int:
    return sum(counts.hits for counts in each.prefill + each.decode)


def test_sizes_that_cannot_be() -> None:
    told = routes([[0, 0]], layers=2)
    for slots in (0, 9):
        with pytest.raises(InvalidParameterError, match="slots in all cannot be"):
            replay(told, "lru", slots, scope="global")
    with pytest.raises(InvalidParameterError, match="2 hold one layer of one token in every layer"):
        replay(told, "lru", 1, scope="layer")


@pytest.fixture(scope="module")
def gpt_oss() -> Routes:
    path = SHARED / "gpt-oss-120b.route.csv"
    if not path.is_file():
        pytest.skip("the recorded routing is not here: ../shared/data/experts beside the repository")
    return read_routes(path)


def percent(each: Replay) -> float:
    return 100 * each.decode_hit_rate


def test_a_real_recording_gives_the_published_numbers(gpt_oss: Routes) -> None:
    assert tuple(gpt_oss.shape) == (36, 128, 2)
    assert (gpt_oss.num_tokens(is_prefill=True), gpt_oss.num_tokens(is_prefill=False)) == (85, 64)
    assert (min(gpt_oss.distinct()), max(gpt_oss.distinct())) == (35, 92)
    assert 100 * ceiling(gpt_oss.routes) == pytest.approx(89.1, abs=0.1)
    for name, scope, slots, published in (
        ("mrs", "layer", 8, 52.5),
        ("belady", "layer", 8, 66.6),
        ("mrs", "global", 2, 23.5),
    ):
        each = replay(gpt_oss, name, slots * 36, scope=scope)
        assert percent(each) == pytest.approx(published, abs=0.1), (name, scope)
