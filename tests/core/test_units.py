from __future__ import annotations

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.units import Amount, parse_amount, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5GB", 1_500_000_000),
        ("64KB", 64_000),
    ],
)
def test_parse(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "2Gi", "two", "-1GiB", "2 G B", "1e9"])
def test_a_wrong_size_names_the_right_ones(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("value", "amount", "of_1000"),
    [
        ("auto", Amount(), None),
        ("25%", Amount(share=0.25), 250),
        (" 12.5 % ", Amount(share=0.125), 125),
        ("150%", Amount(share=1.5), 1500),
        ("1KiB", Amount(num_bytes=1024), 1024),
        (300, Amount(num_bytes=300), 300),
    ],
)
def test_an_amount_is_a_size_a_share_or_what_there_is(
    value: str | int, amount: Amount, of_1000: int | None
) -> None:
    assert parse_amount(value, "x") == amount
    assert amount.of(1000) == of_1000


@pytest.mark.parametrize("value", ["", "%", "-5%", "half", "6Gi", True, 2.5, -1, None])
def test_what_is_no_amount_is_named(value: object) -> None:
    with pytest.raises(InvalidParameterError, match=r"expert_memory must be a size such as 6GiB") as caught:
        parse_amount(value, "expert_memory")  # type: ignore[arg-type]
    assert caught.value.param == "expert_memory"
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["0%", "0GiB", 0])
def test_nothing_is_no_amount(value: str | int) -> None:
    with pytest.raises(InvalidParameterError, match="expert_memory must be more than nothing"):
        parse_amount(value, "expert_memory")
