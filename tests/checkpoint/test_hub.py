"""Hub models against a local stand-in: what is fetched, what is not, interruptions, and life without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from braid.checkpoint.hub import Hub, HubId, choose_gguf, parse_hub_id, quantisation_of
from braid.checkpoint.listing import known_models
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import pull, resolve
from braid.core.errors import CheckpointError, ModelNotFoundError

TAG = "fedcba9876543210fedcba9876543210fedcba98"


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def repo(stand_in: Any, hf_folder: Any, tmp_path: Path) -> dict[str, bytes]:
    """``org/tiny``: three shards, and files that must never be fetched."""
    files = files_of(hf_folder(tmp_path / "upstream", shards=3))
    unwanted = (
        "pytorch_model.bin",
        "modeling_tiny.py",
        "original/model.safetensors",
        "training_args.pt",
        "README.md",
    )
    files |= dict.fromkeys(unwanted, b"no")
    files |= {"tokenizer.json": b"{}", "chat_template.jinja": b"hi", "consolidated.safetensors": b"twice"}
    stand_in.repos["org/tiny"] = files
    return files


@pytest.fixture
def gguf_repo(stand_in: Any, write_gguf: Any) -> dict[str, bytes]:
    tiny = write_gguf().path.read_bytes()
    q8 = write_gguf(dtype="Q8_0").path.read_bytes()
    files = {
        "tiny-Q4_K_M.gguf": tiny,
        "tiny-Q8_0.gguf": q8,
        "mmproj-tiny-f16.gguf": b"no",
        "README.md": b"no",
    }
    stand_in.repos["org/tiny-GGUF"] = files
    return files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", HubId("org/name", "main", None)),
        ("org/name:Q4_K_M", HubId("org/name", "main", "Q4_K_M")),
        ("org/name@v1.0", HubId("org/name", "v1.0", None)),
        ("org/name@refs/pr/3:Q8_0", HubId("org/name", "refs/pr/3", "Q8_0")),
        ("name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/..", None),
        ("org/na me", None),
        ("org/name@../../x", None),
        ("org/name:", None),
    ],
)
def test_hub_ids(name: str, expected: HubId | None) -> None:
    assert parse_hub_id(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("Q6_K/model-Q6_K-00001-of-00003.gguf", "Q6_K"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-IQ3_XXS.gguf", "IQ3_XXS"),
        ("model-bf16.gguf", "BF16"),
        ("model.gguf", None),
    ],
)
def test_quantisation_is_read_from_the_name(name: str, expected: str | None) -> None:
    assert quantisation_of(name) == expected


def test_choice_of_a_split_file_takes_all_its_parts() -> None:
    names = [f"Q8_0/big-Q8_0-{part:05d}-of-00003.gguf" for part in (1, 2, 3)]
    assert choose_gguf([*names, "big-Q4_0.gguf"], "q8_0", "org/big") == tuple(names)


def test_fetches_only_what_is_needed(stand_in: Any, hub: Hub, repo: Any, hf_weights: Any) -> None:
    source = resolve("org/tiny", hub=hub)
    index = "model.safetensors.index.json"
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", index}
    assert set(stand_in.fetched()) == wanted | {
        f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)
    }
    assert source.revision == stand_in.revisions["main"]
    assert open_checkpoint(source).tensors.keys() == hf_weights().keys()


def test_second_time_nothing_is_fetched(stand_in: Any, hub: Hub, repo: Any) -> None:
    first = resolve("org/tiny", hub=hub)
    stand_in.requests.clear()
    assert resolve("org/tiny", hub=hub) == first
    assert stand_in.fetched() == []


def test_progress_adds_up(stand_in: Any, hub: Hub, repo: Any) -> None:
    events: list[Any] = []

    class Recorder:
        def start(self, total_bytes: int, what: str) -> None:
            events.append((total_bytes, what))

        def advance(self, num_bytes: int) -> None:
            events.append(num_bytes)

        def done(self) -> None:
            events.append("done")

    for _ in range(2):
        events.clear()
        pull("org/tiny", Recorder(), hub=hub)
        assert events[0][1] == "Downloading org/tiny"
        assert sum(events[1:-1]) == events[0][0] > 0
        assert events[-1] == "done"


def test_cut_download_is_continued(
    stand_in: Any, hub: Hub, repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only whole chunks survive a cut, and the library's are 10 MB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 250)
    shard = "model-00002-of-00003.safetensors"
    stand_in.cut[shard] = 1000
    assert len(resolve("org/tiny", hub=hub).files) == 3
    ranges = [sent for method, path, sent in stand_in.requests if method == "GET" and path.endswith(shard)]
    assert ranges == [None, "bytes=1000-"]


def test_gguf_of_a_quantisation(stand_in: Any, hub: Hub, gguf_repo: Any) -> None:
    source = resolve("org/tiny-GGUF:q8_0", hub=hub)
    assert (source.format, source.files[0].name) == ("gguf", "tiny-Q8_0.gguf")
    assert stand_in.fetched() == ["tiny-Q8_0.gguf"]
    assert open_checkpoint(source).gguf is not None


def test_gguf_default_and_unknown_quantisation(hub: Hub, gguf_repo: Any) -> None:
    assert resolve("org/tiny-GGUF", hub=hub).files[0].name == "tiny-Q4_K_M.gguf"
    with pytest.raises(ModelNotFoundError, match="no file of quantisation Q5_0; it has Q4_K_M, Q8_0"):
        resolve("org/tiny-GGUF:Q5_0", hub=hub)


def test_revision(stand_in: Any, hub: Hub, repo: Any) -> None:
    stand_in.revisions["v2"] = TAG
    assert resolve("org/tiny@v2", hub=hub).revision == TAG
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        resolve("org/tiny@v3", hub=hub)


def test_unknown_repository(stand_in: Any, hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no such repository.*smollm2"):
        resolve("org/nothing", hub=hub)


def test_pickled_weights_only(stand_in: Any, hub: Hub) -> None:
    stand_in.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"no"}
    with pytest.raises(ModelNotFoundError, match="pickled weights are never fetched"):
        resolve("org/old", hub=hub)
    assert stand_in.fetched() == []


def test_offline_serves_what_was_fetched(stand_in: Any, hub: Hub, repo: Any, gguf_repo: Any) -> None:
    names = ("org/tiny", "org/tiny-GGUF:Q8_0")
    online = [resolve(name, hub=hub) for name in names]
    stand_in.requests.clear()
    assert [resolve(name, hub=hub, offline=True) for name in names] == online
    for name in ("org/other", "org/tiny-GGUF:Q4_0", "org/tiny@v9"):
        with pytest.raises(ModelNotFoundError, match="offline"):
            resolve(name, hub=hub, offline=True)
    assert stand_in.requests == []


def test_hub_in_trouble_falls_back_with_a_warning(
    stand_in: Any, hub: Hub, repo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    online = resolve("org/tiny", hub=hub)
    stand_in.status = 501
    assert resolve("org/tiny", hub=hub) == online
    assert "hub cannot be used" in caplog.text
    with pytest.raises(ModelNotFoundError, match="hub cannot be used"):
        resolve("org/other", hub=hub)


def test_unreachable_hub(tmp_path: Path) -> None:
    nowhere = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    with pytest.raises(ModelNotFoundError, match="hub cannot be used"):
        resolve("org/tiny", hub=nowhere)


def test_index_that_points_outside(stand_in: Any, hub: Hub, repo: Any) -> None:
    index = {"weight_map": {"a": "../../../../evil.safetensors"}}
    repo["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match="not a plain file name"):
        resolve("org/tiny", hub=hub)


def test_damaged_file_is_found_by_pull(hub: Hub, repo: Any) -> None:
    repo["model-00001-of-00003.safetensors"] = repo["model-00001-of-00003.safetensors"][:-10]
    with pytest.raises(CheckpointError, match="model-00001-of-00003"):
        pull("org/tiny", hub=hub)


def test_known_models_list_downloads(hub: Hub, repo: Any, gguf_repo: Any) -> None:
    pull("org/tiny", hub=hub), pull("org/tiny-GGUF:Q8_0", hub=hub)
    downloaded = {model.name: model for model in known_models(hub) if model.kind == "hub"}
    assert set(downloaded) == {"org/tiny", "org/tiny-GGUF:Q8_0"}
    assert downloaded["org/tiny-GGUF:Q8_0"].size_bytes == len(gguf_repo["tiny-Q8_0.gguf"])
