from __future__ import annotations

import io
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from braid.cli import models
from braid.cli.models import Cached, cached_models, list_models

REVISION = "0123456789abcdef0123456789abcdef01234567"


def put(cache: Path, repo: str, name: str, size: int) -> None:
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent.parent / "refs").mkdir(exist_ok=True)
    (folder.parent.parent / "refs" / "main").write_text(REVISION)
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / name).write_bytes(b"x" * size)
    (folder / name).symlink_to(blobs / name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_a_cache_there_is_nothing(cache: Path) -> None:
    assert cached_models() == []


def test_only_repositories_with_weights_count(cache: Path) -> None:
    put(cache, "org/b", "model.safetensors", 7)
    put(cache, "org/a", "a.gguf", 5)
    put(cache, "org/tokenizer-only", "tokenizer.json", 3)
    assert cached_models() == [Cached("org/a", 5), Cached("org/b", 7)]


def test_the_list_names_aliases_and_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "cached_models", lambda: [Cached("org/a", 2048)])
    console = Console(file=io.StringIO(), width=200)
    list_models(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "smollm2" in text
    assert "org/a" in text
    assert "2.0 KiB" in text
