"""Words for how answers end and what prompts bring."""

from __future__ import annotations

import pytest

from braid.core.request import FinishReason
from braid.lab.readers.endings import FINISH_OF, finish_of, input_kind_of, tool_key
from braid.lab.table import FINISHES, INPUT_KINDS
from braid.policy.agents.program import Finish


def test_the_table_and_the_policies_name_the_same_endings() -> None:
    assert set(FINISHES) == {finish.value for finish in Finish} - {Finish.UNKNOWN.value}
    assert set(FINISH_OF.values()) == set(FINISHES)


def test_every_reason_of_braid_but_an_error_is_known() -> None:
    assert {reason for reason in FinishReason if finish_of(reason.value) is None} == {FinishReason.ERROR}


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("tool_use", "tool"),
        ("STOP", "text"),
        ("max_tokens", "length"),
        ("odd", None),
        ("", None),
        (None, None),
    ],
)
def test_finish(word: str | None, finish: str | None) -> None:
    assert finish_of(word) == finish


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        (["tool_result"], "tool"),
        (["text"], "user"),
        (["text", "image"], "user"),
        (["text", "tool_result", "tool_use"], "mixed"),
        (["text", "thinking"], "mixed"),
        ([], None),
    ],
)
def test_input_kind(parts: list[str], kind: str | None) -> None:
    assert input_kind_of(parts) == kind
    assert kind is None or kind in INPUT_KINDS


def test_tool_key() -> None:
    assert tool_key(["b", "a", None, "b", ""]) == "a+b"
    assert tool_key([]) is None
