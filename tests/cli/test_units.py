from __future__ import annotations

import pytest

from braid.cli.units import format_bytes, parse_bytes
from braid.core.errors import InvalidParameterError


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
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_format(count: int, expected: str) -> None:
    assert format_bytes(count) == expected
