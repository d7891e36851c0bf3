from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.server.programs.lineage import Lineage, Node

BLOCK = 16
SYSTEM = list(range(1000, 1100))


def finish(
    lineage: Lineage, program: str, prompt: list[int], *outputs: list[int], key: str | None = None
) -> Node:
    node = Node(program, key)
    lineage.add(node, lineage.prompt(prompt, 0), [array("I", output) for output in outputs], BLOCK)
    return node


def match(lineage: Lineage, prompt: list[int], key: str | None = None) -> Node | None:
    return lineage.match(lineage.prompt(prompt, 0), key)


def test_the_next_turn_is_recognised() -> None:
    lineage = Lineage()
    prompt, output = [*SYSTEM, 1, 2, 3], [7] * 40
    node = finish(lineage, "a", prompt, output)
    assert match(lineage, [*prompt, *output, 8, 9]) is node


def test_also_where_the_answer_is_shown_otherwise() -> None:
    lineage = Lineage()
    prompt = [*SYSTEM, 1, 2, 3]
    node = finish(lineage, "a", prompt, [7] * 40)
    assert match(lineage, [*prompt, 70, 71, 8, 9]) is node


def test_also_where_the_answer_is_opened_otherwise() -> None:
    lineage = Lineage()
    prompt = [*SYSTEM, 1, 2, 3]
    node = Node("a", None)
    lineage.add(node, lineage.prompt([*prompt, 50, 51, 52], 3), [[7] * 40], BLOCK)
    assert match(lineage, [*prompt, 50, 99, 8, 9]) is node


@pytest.mark.parametrize(
    "prompt",
    [
        [*SYSTEM, 1, 2, 4, 5, 6],  # the system text and half of the first message
        SYSTEM,
        [*SYSTEM, 1, 2, 3],  # the same prompt again: another run of the same task
        [*SYSTEM, 1, 2],
        [1, 2, 3],
    ],
)
def test_a_shared_beginning_is_no_lineage(prompt: list[int]) -> None:
    lineage = Lineage()
    finish(lineage, "a", [*SYSTEM, 1, 2, 3], [7] * 40)
    assert match(lineage, prompt) is None


def test_the_longest_match_wins() -> None:
    lineage = Lineage()
    first = finish(lineage, "a", [*SYSTEM, 1], [7] * 40)
    second = finish(lineage, "b", [*SYSTEM, 1, *[7] * 40, 2], [8] * 40)
    assert match(lineage, [*SYSTEM, 1, *[7] * 40, 3]) is first
    assert match(lineage, [*SYSTEM, 1, *[7] * 40, 2, *[8] * 40, 3]) is second


def test_branches_are_told_apart_by_their_answers() -> None:
    lineage = Lineage()
    prompt = [*SYSTEM, 1]
    one, other = finish(lineage, "a", prompt, [7] * 40), finish(lineage, "b", prompt, [8] * 40)
    assert match(lineage, [*prompt, *[7] * 40, 3]) is one
    assert match(lineage, [*prompt, *[8] * 40, 3]) is other


def test_of_equal_ends_one_that_nobody_continues() -> None:
    lineage = Lineage()
    prompt = [*SYSTEM, 1]
    one, other = finish(lineage, "a", prompt, [7]), finish(lineage, "b", prompt, [8])
    other.pending = 1
    assert match(lineage, [*prompt, 3]) is one
    one.continued, other.pending = True, 0
    assert match(lineage, [*prompt, 3]) is other


def test_every_output_of_a_turn_can_be_continued() -> None:
    lineage = Lineage()
    node = finish(lineage, "a", SYSTEM, [7] * 40, [8] * 40)
    for token in (7, 8):
        assert match(lineage, [*SYSTEM, *[token] * 40, 3]) is node


def test_a_cache_key_leaves_only_its_own() -> None:
    lineage = Lineage()
    node = finish(lineage, "a", SYSTEM, [7] * 40, key="k")
    assert match(lineage, [*SYSTEM, 7], "k") is node
    assert match(lineage, [*SYSTEM, 7], "other") is None
    assert match(lineage, [*SYSTEM, 7], None) is node


def test_points_are_bounded_and_the_longest_unused_goes() -> None:
    lineage = Lineage(max_points=8)
    kept = finish(lineage, "kept", [1, 2, 3], [])
    for number in range(100):
        finish(lineage, "a", [number, number, number, number, number], [])
        assert match(lineage, [1, 2, 3, 4]) is kept
        assert len(lineage) <= 8
    assert match(lineage, [0, 0, 0, 0, 0, 1]) is None
    assert match(lineage, [99, 99, 99, 99, 99, 1]) is not None


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=60), min_size=1, max_size=8))
def test_a_match_is_a_true_prefix(prompts: list[list[int]]) -> None:
    lineage = Lineage()
    ends: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        found = match(lineage, prompt)
        if found is not None:
            assert prompt[: len(ends[found.program])] == ends[found.program]
            assert len(prompt) > len(ends[found.program])
        else:
            assert not any(len(end) < len(prompt) and prompt[: len(end)] == end for end in ends.values())
        ends[str(number)] = prompt
        finish(lineage, str(number), prompt, [9])


def test_agents_without_ids_are_regrouped() -> None:
    """Many agents with one system text, their turns in any order; answers are shown otherwise in every second turn."""
    rng = random.Random(7)
    lineage = Lineage()
    agents = {f"a{number}": [*SYSTEM, *rng.choices(range(999), k=30)] for number in range(40)}
    turns, right = 0, 0
    for _ in range(800):
        name = rng.choice(list(agents))
        prompt = agents[name]
        found = match(lineage, prompt)
        if len(prompt) > len(SYSTEM) + 30:
            turns += 1
            right += found is not None and found.program == name
        else:
            assert found is None
        output = rng.choices(range(999), k=rng.randrange(1, 80))
        node = finish(lineage, name, prompt, output)
        if found is not None:
            found.continued = True
        assert node.program == name
        shown = output if rng.random() < 0.5 else rng.choices(range(999), k=20)
        agents[name] = [*prompt, *shown, *rng.choices(range(999), k=25)]
    assert turns > 700
    assert right == turns
