from __future__ import annotations

import pytest

from braid.cli.units import format_bytes


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_format(count: int, expected: str) -> None:
    assert format_bytes(count) == expected
