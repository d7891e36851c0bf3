"""From a checkpoint of a mixture of experts to one whose experts lie in a file of records, in bounded memory.

Never more than one expert's weights, or one other tensor, are in memory: the source is mapped, and every record is
written before the next is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import torch

from braid.checkpoint.cache import experts_dir, identify
from braid.checkpoint.expert_file import (
    EXPERT_FILE,
    ExpertFile,
    ExpertWriter,
    check_space,
    open_experts,
)
from braid.checkpoint.expert_names import Expert, ExpertTensors, find_experts, is_beyond, is_expert
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.progress import NullProgress, Progress
from braid.checkpoint.quantise import pack_expert, weight_dtype
from braid.checkpoint.safetensors_file import Layout, header_bytes
from braid.checkpoint.source import INDEX_NAME
from braid.checkpoint.tensors import TensorInfo
from braid.checkpoint.weights import TensorReader, kept_dtype, raw_bytes
from braid.core.errors import CheckpointError, InvalidParameterError
from braid.core.experts import FORMATS, ExpertLayout

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The format in which Braid runs the checkpoint by default: what comes out is what all experts in memory give."""
WEIGHTS = "model.safetensors"
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_COPIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "README")
_SPARE_BYTES = 2**26
_RECORDS_VERSION = 1
"""Raise it whenever the same checkpoint would give other records."""


class Converted(NamedTuple):
    """A folder that ``convert`` made.

    Args:
        source_bytes: the checkpoint's tensors as it stores them; ``source_expert_bytes``: its experts among them.
        dense_bytes: all other tensors as the folder stores them.
    """

    folder: Path
    experts: ExpertFile
    source_bytes: int
    source_expert_bytes: int
    dense_bytes: int


def convert(
    checkpoint: Checkpoint,
    folder: Path,
    format: str = AUTO,
    *,
    progress: Progress | None = None,
    write_tokenizer: Callable[[Path], None] | None = None,
) -> Converted:
    """Make a folder that is the same model with its experts in `EXPERT_FILE`. It appears whole, or not at all.

    Args:
        folder: a new one, or an empty one.
        format: one of ``core.experts.FORMATS``, or `AUTO`.
        progress: told about stored bytes that were read.
        write_tokenizer: puts the tokenizer of a GGUF file into a folder; other checkpoints' files are copied.

    Raises:
        InvalidParameterError: no such format, or the experts' sizes do not allow it.
        CheckpointError: the model has no experts, is damaged, or the disk is too small.
    """
    assert checkpoint.gguf is None or write_tokenizer is not None, "a GGUF file's tokenizer must be written"
    found = find_experts(checkpoint)
    layout = layout_of(checkpoint, found, format)
    dtype = _run_dtype(checkpoint)
    dense = {
        name: info
        for name, info in checkpoint.tensors.items()
        if not is_expert(name) and not is_beyond(name, checkpoint.config)
    }
    stored = [Layout(name, kept_dtype(info, dtype), info.shape) for name, info in dense.items()]
    dense_bytes = sum(item.num_bytes for item in stored)
    progress = progress or NullProgress()
    with _appearing(folder) as place:
        check_space(place, found.shape.total * layout.record_bytes + dense_bytes + _SPARE_BYTES)
        if checkpoint.gguf is None:
            _copy_files(checkpoint.source.root, place)
        elif write_tokenizer is not None:
            write_tokenizer(place)
        read_bytes = found.num_bytes + sum(info.num_bytes for info in dense.values())
        progress.start(read_bytes, f"Converting {checkpoint.source.name} to {layout.format} experts")
        try:
            with TensorReader() as reader:
                _write_experts(reader, checkpoint, found, layout, place / EXPERT_FILE, "", progress)
                _write_dense(reader, dense, stored, dtype, place / WEIGHTS, progress)
        finally:
            progress.done()
        # A folder is a model once it has this file.
        _write_json(place / _GENERATION, checkpoint.generation_config)
        _write_json(place / _CONFIG, checkpoint.config)
    experts = open_experts(folder / EXPERT_FILE)
    return Converted(folder, experts, checkpoint.size_bytes, found.num_bytes, dense_bytes)


def experts_of(checkpoint: Checkpoint, format: str = AUTO, *, progress: Progress | None = None) -> ExpertFile:
    """The expert file of a checkpoint: its own if it is a folder of `convert`, else one in Braid's cache folder.

    That one is made at the first call and made again when the checkpoint's files change.

    Raises:
        InvalidParameterError: no such format, or another than the folder has, or the sizes do not allow it.
        CheckpointError: the model has no experts, is damaged, or the disk is too small.
    """
    own = checkpoint.experts
    if own is not None:
        if format not in (AUTO, own.layout.format):
            raise InvalidParameterError(
                f"{own.path} holds experts as {own.layout.format}, not as {format}: leave the format out, or convert "
                "the checkpoint that it was made from once more",
                param="expert_format",
            )
        return own
    found = find_experts(checkpoint)
    layout = layout_of(checkpoint, found, format)
    path, identity = _kept_at(checkpoint, layout)
    kept = _find_kept(path, identity, found, layout)
    if kept is not None:
        return kept
    progress = progress or NullProgress()
    progress.start(found.num_bytes, f"Converting the experts of {checkpoint.source.name} to {layout.format}")
    try:
        with TensorReader() as reader:
            return _write_experts(reader, checkpoint, found, layout, path, identity, progress)
    finally:
        progress.done()


def layout_of(checkpoint: Checkpoint, found: ExpertTensors, format: str) -> ExpertLayout:
    """How the experts of a checkpoint lie in records of a format.

    Raises:
        InvalidParameterError: no such format, or the experts' sizes do not allow it.
    """
    if format == AUTO:
        format = str(_run_dtype(checkpoint)).removeprefix("torch.")
    try:
        return ExpertLayout(format, found.hidden, found.size)
    except ValueError as error:
        choices = "" if format in FORMATS else f", {AUTO}"
        raise InvalidParameterError(f"{error}{choices}", param="expert_format") from error


def _run_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What a model runs in unless it is told otherwise: half and quantised weights in bfloat16."""
    stated = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
    return torch.float32 if stated == "float32" else torch.bfloat16


def _kept_at(checkpoint: Checkpoint, layout: ExpertLayout) -> tuple[Path, str]:
    """Where the file is kept, and what it must say to be current."""
    files = checkpoint.source.files
    place = hashlib.sha256(f"{files[0].resolve()}\n{layout.format}".encode()).hexdigest()[:16]
    states = json.dumps([_RECORDS_VERSION, layout.format, [identify(file) for file in files]])
    stem = files[0].stem if checkpoint.gguf is not None else checkpoint.source.root.name
    path = experts_dir() / f"{stem[:80]}-{layout.format}-{place}.braid"
    return path, hashlib.sha256(states.encode()).hexdigest()


def _find_kept(path: Path, identity: str, found: ExpertTensors, layout: ExpertLayout) -> ExpertFile | None:
    if not path.exists():
        return None
    try:
        kept = open_experts(path)
    except CheckpointError as error:
        logger.warning("A kept expert file is damaged, converting again: %s", error)
        return None
    if (kept.identity, kept.shape, kept.layout) != (identity, found.shape, layout):
        logger.warning("%s is stale (its source changed): converting again", path)
        return None
    return kept


def _write_experts(
    reader: TensorReader,
    checkpoint: Checkpoint,
    found: ExpertTensors,
    layout: ExpertLayout,
    path: Path,
    identity: str,
    progress: Progress,
) -> ExpertFile:
    source = str(checkpoint.source.files[0] if checkpoint.gguf is not None else checkpoint.source.root)
    with ExpertWriter(path, found.shape, layout, source=source, identity=identity) as writer:
        for index, expert in enumerate(found.experts):
            writer.write(index, raw_bytes(_record(reader, expert, layout)))
            reader.release()
            progress.advance(expert.num_bytes)
        return writer.commit()


def _record(reader: TensorReader, expert: Expert, layout: ExpertLayout) -> torch.Tensor:
    dtype = weight_dtype(layout)
    try:
        gate_up = torch.cat((reader.read(expert.gate, dtype), reader.read(expert.up, dtype)))
        return pack_expert(gate_up, reader.read(expert.down, dtype), layout)
    except CheckpointError as error:
        raise CheckpointError(f"{expert.gate.file}: {expert.gate.name!r} and its like: {error}") from error


def _write_dense(
    reader: TensorReader,
    dense: Mapping[str, TensorInfo],
    stored: list[Layout],
    dtype: torch.dtype,
    path: Path,
    progress: Progress,
) -> None:
    with _writing(path) as file:
        file.write(header_bytes(stored, {"format": "pt"}))
        for info in dense.values():
            file.write(raw_bytes(reader.read_kept(info, dtype).contiguous()))
            reader.release()
            progress.advance(info.num_bytes)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place at the end, and is gone if anything goes wrong before."""
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not an empty folder; name a new one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-", suffix=".tmp"))
        place.chmod(0o755)
        try:
            yield place
            os.replace(place, folder)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that is on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    if value:
        with _writing(path) as file:
            file.write(json.dumps(value, indent=2).encode() + b"\n")


def _copy_files(root: Path, folder: Path) -> None:
    """Everything small beside the weights: tokenizer, templates, licence."""
    for file in sorted(root.iterdir()):
        named = file.name.upper().startswith(_COPIED_NAMES)
        known = file.suffix in _COPIED_SUFFIXES and file.name not in (INDEX_NAME, _CONFIG, _GENERATION)
        if file.is_file() and (named or known):
            shutil.copyfile(file, folder / file.name)
