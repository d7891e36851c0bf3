"""Conversion: every family's experts become records, all else stays as it was, memory is bounded, nothing half-done."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from braid.checkpoint import convert as convert_module
from braid.checkpoint import expert_file
from braid.checkpoint.cache import experts_dir
from braid.checkpoint.convert import convert, experts_of
from braid.checkpoint.expert_file import EXPERT_FILE, ExpertFile
from braid.checkpoint.expert_names import find_experts, is_expert
from braid.checkpoint.hub import Hub
from braid.checkpoint.listing import known_models
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.quantise import pack_expert, unpack_expert
from braid.checkpoint.weights import TensorReader, iter_weights
from braid.core.errors import CheckpointError, InvalidParameterError
from braid.core.experts import ExpertShape

FAMILIES = ["mixtral", "qwen2moe", "qwen3moe", "olmoe", "deepseek2"]
EXPERTS, INNER, HIDDEN = 4, 64, 32
PARTS = {"mixtral": ("w1", "w3", "w2")}
Open = Callable[[Path], Checkpoint]
MakeFolder = Callable[..., Path]


class Counted:
    """Progress, in numbers."""

    def __init__(self) -> None:
        self.total, self.bytes, self.ended, self.what = 0, 0, 0, ""

    def start(self, total_bytes: int, what: str) -> None:
        self.total, self.what = total_bytes, what

    def advance(self, num_bytes: int) -> None:
        self.bytes += num_bytes

    def done(self) -> None:
        self.ended += 1


@pytest.fixture
def hf_moe(tmp_path: Path, write_gguf: Any, open_path: Open) -> MakeFolder:
    """A family's folder, with the config that its GGUF twin has."""

    def make(family: str = "qwen3moe", name: str = "hf", dtype: str = "float32", **change: Any) -> Path:
        written = write_gguf(family, name=f"{name}.gguf")
        folder = tmp_path / name
        folder.mkdir()
        save_file(
            {key: value.astype(dtype) for key, value in written.weights.items()}, folder / "model.safetensors"
        )
        config = open_path(written.path).config | change
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        (folder / "tokenizer.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("hello")
        (folder / "LICENSE").write_text("free")
        (folder / "pytorch_model.bin").write_text("unwanted")
        return folder

    return make


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def read(file: ExpertFile, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    buffer = bytearray(file.layout.record_bytes)
    file.read_into(expert, buffer)
    return unpack_expert(torch.frombuffer(buffer, dtype=torch.uint8), file.layout)


def expected(weights: dict[str, np.ndarray], family: str, layer: int, index: int) -> tuple[Any, Any]:
    moe = "block_sparse_moe" if family == "mixtral" else "mlp"
    stem = f"model.layers.{layer}.{moe}.experts.{index}"
    gate, up, down = (
        torch.from_numpy(weights[f"{stem}.{part}.weight"])
        for part in PARTS.get(family, ("gate_proj", "up_proj", "down_proj"))
    )
    return torch.cat((gate, up)), down


def assert_same_dense(made: Checkpoint, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    old = dict(iter_weights(checkpoint, dtype, skip=is_expert))
    new = dict(iter_weights(made, dtype))
    assert new.keys() == old.keys()
    for name, tensor in new.items():
        assert tensor.dtype == old[name].dtype, name
        assert torch.equal(tensor, old[name]), name


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(
    family: str, kind: str, write_gguf: Any, hf_moe: MakeFolder, open_path: Open, tmp_path: Path
) -> None:
    written = write_gguf(family)
    checkpoint = open_path(written.path if kind == "gguf" else hf_moe(family))
    progress = Counted()
    result = convert(checkpoint, tmp_path / "out", "float32", progress=progress, write_tokenizer=no_tokenizer)
    made = open_path(tmp_path / "out")
    first = 1 if family == "deepseek2" else 0  # its first layer is dense
    assert made.experts == result.experts
    assert made.experts is not None
    assert made.experts.shape == ExpertShape(layers=2 - first, per_layer=EXPERTS, top_k=2)
    assert (made.experts.layout.hidden, made.experts.layout.size) == (HIDDEN, INNER)
    for expert in range(made.experts.shape.total):
        gate_up, down = expected(written.weights, family, first + expert // EXPERTS, expert % EXPERTS)
        got = read(made.experts, expert)
        assert torch.equal(got[0], gate_up)
        assert torch.equal(got[1], down)
    assert made.config == checkpoint.config
    assert made.generation_config == checkpoint.generation_config
    assert not any(is_expert(name) for name in made.tensors)
    assert_same_dense(made, checkpoint, torch.float32)
    assert progress.bytes == progress.total == checkpoint.size_bytes == result.source_bytes
    assert progress.ended == 1


def test_folders_bring_their_files(hf_moe: MakeFolder, open_path: Open, tmp_path: Path) -> None:
    convert(open_path(hf_moe()), tmp_path / "out", "int4")
    names = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"model.safetensors", EXPERT_FILE}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("dtype", "stated", "form"), [("float32", "float32", "float32"), ("float16", "float16", "bfloat16")]
)
def test_auto_is_what_the_model_runs_in(
    dtype: str, stated: str, form: str, hf_moe: MakeFolder, open_path: Open, tmp_path: Path
) -> None:
    checkpoint = open_path(hf_moe(dtype=dtype, torch_dtype=stated))
    result = convert(checkpoint, tmp_path / "out")
    assert result.experts.layout.format == form
    run = getattr(torch, form)
    resident = dict(iter_weights(checkpoint, run))
    down = resident["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert torch.equal(read(result.experts, 7)[1], down)
    assert_same_dense(open_path(tmp_path / "out"), checkpoint, run)
    # What is not an expert keeps its type.
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("stored", ["Q8_0", "Q4_0", "F16"])
def test_gguf_gives_what_all_in_memory_gives(
    stored: str, write_gguf: Any, open_path: Open, tmp_path: Path
) -> None:
    checkpoint = open_path(write_gguf("qwen3moe", dtype=stored).path)
    made = convert(checkpoint, tmp_path / "out", write_tokenizer=no_tokenizer)
    assert made.experts.layout.format == "bfloat16"
    resident = dict(iter_weights(checkpoint, torch.bfloat16))
    for expert in (0, 5):
        stem = f"model.layers.{expert // EXPERTS}.mlp.experts.{expert % EXPERTS}"
        gate_up, down = read(made.experts, expert)
        gate, up = (resident[f"{stem}.{part}_proj.weight"] for part in ("gate", "up"))
        assert torch.equal(gate_up, torch.cat((gate, up)))
        assert torch.equal(down, resident[f"{stem}.down_proj.weight"])
    assert_same_dense(open_path(tmp_path / "out"), checkpoint, torch.bfloat16)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantised_records_are_those_of_pack_expert(
    form: str, write_gguf: Any, open_path: Open, tmp_path: Path
) -> None:
    written = write_gguf("mixtral")
    file = convert(open_path(written.path), tmp_path / "out", form, write_tokenizer=no_tokenizer).experts
    buffer = bytearray(file.layout.record_bytes)
    file.read_into(6, buffer)
    record = pack_expert(*expected(written.weights, "mixtral", 1, 2), file.layout)
    assert bytes(buffer) == record.numpy().tobytes()


class Live:
    """Bytes of tensors that were asked for and are alive, and the most there ever were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        for place, name in ((TensorReader, "read"), (convert_module, "pack_expert"), (torch, "cat")):
            monkeypatch.setattr(place, name, self._counted(getattr(place, name)))

    def _counted(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def counted(*args: Any) -> torch.Tensor:
            tensor = function(*args)
            size = tensor.nbytes
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(tensor, self._drop, size)
            return tensor

        return counted

    def _drop(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("form", ["bfloat16", "int4"])
def test_memory_is_bounded_by_an_expert(
    form: str,
    kind: str,
    write_gguf: Any,
    hf_moe: MakeFolder,
    open_path: Open,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    checkpoint = open_path(hf_moe() if kind == "hf" else write_gguf("qwen3moe", dtype="Q8_0").path)
    one = 3 * HIDDEN * INNER * (2 if form == "bfloat16" else 4)
    live = Live(monkeypatch)
    file = convert(checkpoint, tmp_path / "out", form, write_tokenizer=no_tokenizer).experts
    assert one < live.most < 2 * one + file.layout.record_bytes < one * EXPERTS
    assert live.now == 0


def test_layers_beyond_the_last_are_left_out(hf_moe: MakeFolder, open_path: Open, tmp_path: Path) -> None:
    folder = hf_moe("deepseek2")
    weights = load_file(folder / "model.safetensors")
    more = {name.replace("layers.1.", "layers.2."): value for name, value in weights.items() if ".1." in name}
    save_file(weights | more, folder / "model.safetensors")
    convert(open_path(folder), tmp_path / "out", "int8")
    made = open_path(tmp_path / "out")
    assert made.experts is not None
    assert made.experts.shape.layers == 1
    assert not any("layers.2." in name for name in made.tensors)


@pytest.mark.parametrize(
    ("where", "error", "raised"),
    [
        ("pack_expert", KeyboardInterrupt(), KeyboardInterrupt),
        ("header_bytes", OSError(28, "No space left on device"), CheckpointError),
        ("_write_json", OSError(5, "Input/output error"), CheckpointError),
    ],
)
def test_what_is_interrupted_leaves_nothing(
    where: str,
    error: BaseException,
    raised: type[BaseException],
    hf_moe: MakeFolder,
    open_path: Open,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    checkpoint = open_path(hf_moe())
    before = sorted(tmp_path.rglob("*"))

    def fail(*args: Any) -> None:
        assert not list(tmp_path.glob(".out*/config.json"))
        raise error

    monkeypatch.setattr(convert_module, where, fail)
    progress = Counted()
    with pytest.raises(raised):
        convert(checkpoint, tmp_path / "out", "int8", progress=progress)
    assert progress.ended == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_small_disk_is_said_before_anything_is_read(
    hf_moe: MakeFolder, open_path: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = open_path(hf_moe())
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(expert_file.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(convert_module, "TensorReader", None)
    with pytest.raises(CheckpointError, match=r"0\.07 GB are needed and 0\.00 GB are free"):
        convert(checkpoint, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.fixture
def damaged(hf_moe: MakeFolder, open_path: Open) -> Callable[..., Checkpoint]:
    def make(change: Callable[[dict[str, np.ndarray]], None], **config: Any) -> Checkpoint:
        folder = hf_moe("olmoe", **config)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")
        return open_path(folder)

    return make


ONE = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda w: w.pop(ONE), {}, "lacks the up matrix of expert 2 in layer 1"),
        (lambda w: w.update({ONE: w[ONE][:32]}), {}, rf"'{ONE}' has shape \[32, 32\], expected \[64, 32\]"),
        (lambda w: w[ONE].fill(np.nan), {}, r"experts\.2\.gate_proj\.weight' and its like: .*not finite"),
        (lambda w: None, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, must be from 1 to 4"),
        (lambda w: None, {"num_experts": 3}, r"layers hold 4 experts, config\.json says 3"),
        (lambda w: None, {"num_experts": 5}, "lacks the gate matrix of expert 4 in layer 0"),
    ],
)
def test_damaged_checkpoints_are_named(
    change: Any, config: dict[str, Any], said: str, damaged: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert(damaged(change, **config), tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_said(
    hf_moe: MakeFolder, hf_folder: Callable[..., Path], open_path: Open, tmp_path: Path
) -> None:
    moe = open_path(hf_moe())
    with pytest.raises(CheckpointError, match=r"no routed experts \(LlamaForCausalLM"):
        convert(open_path(hf_folder(tmp_path / "llama")), tmp_path / "out")
    with pytest.raises(InvalidParameterError, match=r"'int3' is not known; choices: .*int4, auto"):
        convert(moe, tmp_path / "out", "int3")
    with pytest.raises(CheckpointError, match="hf: exists and is not an empty folder"):
        convert(moe, tmp_path / "hf", "int8")
    (tmp_path / "empty").mkdir()
    convert(moe, tmp_path / "empty", "int8")
    with pytest.raises(CheckpointError, match=r"is converted already: .* as int8"):
        convert(open_path(tmp_path / "empty"), tmp_path / "out", "int4")


def test_experts_are_made_once(
    hf_moe: MakeFolder, open_path: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hf_moe()
    progress = Counted()
    file = experts_of(open_path(folder), "int8", progress=progress)
    assert file.path.parent == experts_dir()
    assert progress.bytes == progress.total == find_experts(open_path(folder)).num_bytes
    assert experts_of(open_path(folder), "int4").path != file.path
    known = known_models(Hub(cache_dir=folder / "none"))
    assert [(model.name, model.kind) for model in known if model.kind != "alias"] == [
        (str(folder), "experts")
    ] * 2

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "TensorReader", None)
        assert experts_of(open_path(folder), "int8") == file
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {ONE: -weights[ONE]}, folder / "model.safetensors")
    again = experts_of(open_path(folder), "int8")
    assert "stale" in caplog.text
    assert [again.crc(id) == file.crc(id) for id in range(8)] == [id != 6 for id in range(8)]
    file.path.write_bytes(b"?")
    assert experts_of(open_path(folder), "int8") == again
    assert "damaged" in caplog.text


def test_a_converted_folder_has_its_own(hf_moe: MakeFolder, open_path: Open, tmp_path: Path) -> None:
    convert(open_path(hf_moe()), tmp_path / "out", "int8")
    made = open_path(tmp_path / "out")
    assert experts_of(made) is made.experts
    assert experts_of(made, "int8") is made.experts
    with pytest.raises(InvalidParameterError, match="holds experts as int8, not as int4"):
        experts_of(made, "int4")
    assert not experts_dir().exists()
    (tmp_path / "out" / EXPERT_FILE).write_bytes(b"?")
    with pytest.raises(CheckpointError, match="is not an expert file"):
        open_path(tmp_path / "out")


@pytest.fixture
def converted_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    from braid.checkpoint import weights

    seen: list[str] = []
    real = weights._convert

    def watched(maps: Any, info: Any, dtype: torch.dtype) -> torch.Tensor:
        seen.append(info.name)
        return real(maps, info, dtype)

    monkeypatch.setattr(weights, "_convert", watched)
    return seen


def test_skipped_tensors_are_neither_read_nor_kept(
    write_gguf: Any, open_path: Open, private_cache: Path, converted_names: list[str]
) -> None:
    checkpoint = open_path(write_gguf("qwen3moe", dtype="Q8_0").path)
    whole = {name: tensor.clone() for name, tensor in iter_weights(checkpoint, torch.bfloat16)}
    dense = {name for name in whole if not is_expert(name)}
    converted_names.clear()
    for turn in range(2):  # converted, then from the cache
        progress = Counted()
        some = dict(iter_weights(checkpoint, torch.bfloat16, progress=progress, skip=is_expert))
        assert some.keys() == dense
        assert all(torch.equal(some[name], whole[name]) for name in dense)
        assert progress.bytes == progress.total == sum(checkpoint.tensors[n].num_bytes for n in dense)
        assert set(converted_names) == dense
        assert len(converted_names) == len(dense), turn
    sizes = sorted(file.stat().st_size for file in (private_cache / "converted").iterdir())
    assert len(sizes) == 2
    assert sizes[0] < 0.7 * sizes[1]
    assert dict(iter_weights(checkpoint, torch.bfloat16)).keys() == whole.keys()
    assert len(converted_names) == len(dense)
