"""How a checkpoint says whether, and how, it makes embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from braid.checkpoint.open import Checkpoint
from braid.checkpoint.pooling import stated_pooling
from braid.core.errors import CheckpointError

Open = Callable[[Path], Checkpoint]


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, None),
        ({}, None),
    ],
)
def test_a_folder_says_it_in_the_pooling_file(
    hf_folder: Callable[..., Path],
    open_path: Open,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    modes: dict[str, Any],
    expected: str | None,
) -> None:
    folder = hf_folder(tmp_path / "model")
    assert stated_pooling(open_path(folder)) is None
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with caplog.at_level(logging.WARNING):
        assert stated_pooling(open_path(folder)) == expected
    assert ("no embeddings" in caplog.text) == (expected is None)


def test_a_broken_pooling_file_is_named(
    hf_folder: Callable[..., Path], open_path: Open, tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="1_Pooling"):
        stated_pooling(open_path(folder))


@pytest.mark.parametrize(
    ("number", "expected"), [(None, None), (0, None), (1, "mean"), (2, None), (3, "last")]
)
def test_a_gguf_file_says_it_by_number(
    write_gguf: Callable[..., Any], open_path: Open, number: int | None, expected: str | None
) -> None:
    metadata = {} if number is None else {"pooling_type": number}
    assert stated_pooling(open_path(write_gguf("llama", metadata=metadata).path)) == expected
