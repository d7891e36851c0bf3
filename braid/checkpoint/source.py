"""Models on this machine's disk: which files make up a folder's or a GGUF file's checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from braid.core.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
MAX_PARTS = 10_000
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where a model's files are.

    Args:
        name: as the user gave it.
        files: the weight files, in order.
        root: the folder of config.json and tokenizer.json; for GGUF the file's folder.
        revision: the commit of a hub model, else None.
    """

    name: str
    format: Literal["safetensors", "gguf"]
    files: tuple[Path, ...]
    root: Path
    revision: str | None = None


def local_source(name: str, path: Path, revision: str | None = None) -> ModelSource:
    """The checkpoint at an existing path: a ``.gguf`` file (any part of a split one) or a folder.

    Raises:
        CheckpointError: the path holds no complete checkpoint of a kind Braid reads.
    """
    path = path.absolute()
    if path.is_dir():
        return _folder(name, path, revision)
    if path.suffix.lower() == ".gguf":
        return ModelSource(
            name=name, format="gguf", files=split_parts(path), root=path.parent, revision=revision
        )
    raise CheckpointError(f"{path}: is neither a folder with config.json nor a .gguf file")


def split_parts(path: Path) -> tuple[Path, ...]:
    """All parts of a split GGUF file, in order; a file that is whole is its only part.

    Raises:
        CheckpointError: a part is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MAX_PARTS:
        raise CheckpointError(f"{path}: is not a part between 1 and {count} (at most {MAX_PARTS})")
    parts = tuple(path.with_name(part) for part in split_names(path.name))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:3])}"
        )
    return parts


def split_names(name: str) -> tuple[str, ...]:
    """The file names of all parts, given one of them (``x-00001-of-00003.gguf``); a whole file's own name."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return (name,)
    count = min(int(match["count"]), MAX_PARTS)
    return tuple(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def _folder(name: str, path: Path, revision: str | None) -> ModelSource:
    if (path / "config.json").is_file() and (files := _safetensors(path)):
        return ModelSource(name=name, format="safetensors", files=files, root=path, revision=revision)
    models = sorted(
        {split_names(file.name)[0] for file in path.glob("*.gguf") if not is_projector(file.name)}
    )
    if len(models) == 1:
        parts = split_parts(path / models[0])
        return ModelSource(name=name, format="gguf", files=parts, root=path, revision=revision)
    if models:
        raise CheckpointError(
            f"{path}: holds several GGUF models, name one of them: {', '.join(models[:20])}"
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: has neither config.json nor a .gguf file")
    if list(path.glob("*.bin")) or list(path.glob("*.pt")) or list(path.glob("*.pth")):
        raise CheckpointError(
            f"{path}: has pickled weights (.bin, .pt) only; they can run code when opened and are not read. "
            "Convert them to safetensors"
        )
    raise CheckpointError(f"{path}: has config.json but no .safetensors files")


def is_projector(name: str) -> bool:
    """Whether a ``.gguf`` file is the image part of a model rather than a language model."""
    return name.lower().startswith("mmproj")


def _safetensors(path: Path) -> tuple[Path, ...]:
    index = path / INDEX_NAME
    if index.is_file():
        shards = index_shards(index)
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing:
            raise CheckpointError(
                f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:3])}"
            )
        return tuple(path / shard for shard in shards)
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    # Mistral's repositories hold the same weights twice; "consolidated" is their own layout.
    names = (
        file for file in path.glob("*.safetensors") if not file.name.startswith(("consolidated", "adapter"))
    )
    return tuple(sorted(names))


def index_shards(index: Path) -> list[str]:
    """Shard file names of an index file, sorted.

    Raises:
        CheckpointError: the index is not valid or names a file outside its folder.
    """
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: is not a valid index: {type(error).__name__}: {error}") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {str(shard)[:80]!r} is not a plain file name")
    return shards
