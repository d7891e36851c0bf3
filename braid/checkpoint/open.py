"""A checkpoint as one picture: configuration, tensors and tokenizer metadata, whatever its format. No torch here."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braid.checkpoint import gguf_file, safetensors_file
from braid.checkpoint.expert_file import EXPERT_FILE, ExpertFile, open_experts
from braid.checkpoint.gguf_config import synthesise
from braid.checkpoint.gguf_file import GGUFMetadata
from braid.checkpoint.gguf_names import map_tensors
from braid.checkpoint.source import INDEX_NAME, ModelSource
from braid.checkpoint.tensors import Extent, TensorInfo
from braid.core.errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
_POSITIVE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """An opened checkpoint; its numbers come from ``weights.iter_weights``.

    Args:
        source: where it was found.
        config: config.json, or its equal made from GGUF metadata.
        generation_config: generation_config.json, empty where there is none.
        tensors: every tensor by its Hugging Face name.
        gguf: GGUF metadata (tokenizer and chat template among it); None for Hugging Face folders.
        experts: the routed experts of a folder of ``braid convert``, which are not among its tensors; else None.
    """

    source: ModelSource
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    gguf: GGUFMetadata | None
    experts: ExpertFile | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.num_bytes for info in self.tensors.values())


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Read configuration and headers, and check them against the files' sizes.

    Raises:
        CheckpointError: naming the file, and the tensor or key at fault.
    """
    return _open_gguf(source) if source.format == "gguf" else _open_folder(source)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        CheckpointError: the file is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return value


def _open_folder(source: ModelSource) -> Checkpoint:
    config = read_json(source.root / "config.json")
    _check_config(source.root / "config.json", config)
    generation_path = source.root / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    tensors: dict[str, TensorInfo] = {}
    for file in source.files:
        for name, info in safetensors_file.read_header(file).tensors.items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {tensors[name].file.name}")
            tensors[name] = info
    _check_index(source, tensors)
    path = source.root / EXPERT_FILE
    return Checkpoint(
        source=source,
        config=config,
        generation_config=generation,
        tensors=tensors,
        gguf=None,
        experts=open_experts(path) if path.exists() else None,
    )


def _check_config(path: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    if architectures is not None and not named:
        raise CheckpointError(f"{path}: architectures must be a list of names, is {str(architectures)[:60]}")
    if not architectures and not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path}: names neither architectures nor model_type")
    for key in _POSITIVE:
        value = config.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise CheckpointError(f"{path}: {key} must be a positive integer, is {str(value)[:60]}")
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise CheckpointError(
            f"{path}: weights quantised by {str(method)[:60]!r} are not supported; "
            "use the unquantised checkpoint or a GGUF file"
        )


def _check_index(source: ModelSource, tensors: Mapping[str, TensorInfo]) -> None:
    path = source.root / INDEX_NAME
    if not path.exists():
        return
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: has no weight_map")
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} is not in {shard!r}")


def _open_gguf(source: ModelSource) -> Checkpoint:
    headers = [gguf_file.read_header(file) for file in source.files]
    metadata = headers[0].metadata
    extents: dict[str, Extent] = {}
    for header in headers:
        for name, extent in header.extents.items():
            if name in extents:
                raise CheckpointError(f"{extent.file}: tensor {name!r} is also in {extents[name].file.name}")
            extents[name] = extent
    _check_split(source, metadata, len(extents))
    made = synthesise(source.files[0], metadata, extents, _rope_factors(extents.get("rope_freqs.weight")))
    return Checkpoint(
        source=source,
        config=made.config,
        generation_config=made.generation_config,
        tensors=map_tensors(made.family, extents, made.config),
        gguf=metadata,
    )


def _check_split(source: ModelSource, metadata: GGUFMetadata, num_tensors: int) -> None:
    count = metadata.get("split.count", 0) or 1
    if count != len(source.files):
        raise CheckpointError(
            f"{source.files[0]}: is one of {str(count)[:20]} parts, {len(source.files)} were found"
        )
    total = metadata.get("split.tensors.count", num_tensors)
    if count != 1 and total != num_tensors:
        raise CheckpointError(
            f"{source.files[0]}: the parts hold {num_tensors} tensors, not {str(total)[:20]}"
        )


def _rope_factors(extent: Extent | None) -> list[float] | None:
    if extent is None:
        return None
    if extent.dtype != "F32" or extent.num_bytes > 65536:
        raise CheckpointError(f"{extent.file}: tensor 'rope_freqs.weight' must be a short F32 list")
    with extent.file.open("rb") as file:
        file.seek(extent.offset)
        return list(struct.unpack(f"<{extent.num_bytes // 4}f", file.read(extent.num_bytes)))
