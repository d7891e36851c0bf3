from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from braid.checkpoint.listing import KnownModel
from braid.cli import models
from braid.cli.models import list_models, models_table

ALIAS = KnownModel("smollm2", "alias", "SmolLM2 (installed)", 0, None)
HUB = KnownModel("org/a:Q8_0", "hub", "gguf", 2048, Path("/cache/a"))


def test_table() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(models_table([ALIAS, HUB]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for word in ("smollm2", "installed", "org/a:Q8_0", "gguf", "2.0 KiB"):
        assert word in text
    assert "0 B" not in text


@pytest.mark.parametrize(("known", "hint"), [([ALIAS], True), ([ALIAS, HUB], False)])
def test_who_has_downloaded_nothing_hears_how(
    known: list[KnownModel], hint: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "known_models", lambda: known)
    list_models()
    assert ("braid pull" in capsys.readouterr().out) is hint
