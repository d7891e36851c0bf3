"""A checkpoint's numbers as torch tensors, one at a time, under Hugging Face names and in Hugging Face layouts."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from braid.checkpoint.cache import ConvertedCache
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.progress import NullProgress, Progress
from braid.checkpoint.safetensors_file import Layout
from braid.checkpoint.tensors import ENCODINGS, Extent, TensorInfo
from braid.core.errors import CheckpointError, InvalidParameterError

TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_ROUTERS = (".mlp.gate.weight", ".block_sparse_moe.gate.weight", ".shared_expert_gate.weight")
Tensors = Mapping[str, TensorInfo]
CHUNK_NUMBERS = 2**18
"""Numbers dequantised at once: 1 MiB of float32 stays in a core's cache (four times the speed of 16-row groups)."""


def iter_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    progress: Progress | None = None,
    skip: Callable[[str], bool] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor once: ``(Hugging Face name, CPU tensor)``.

    Matrices come in ``dtype``; vectors and router matrices in their stored precision. Tensors that need no
    conversion are views of the mapped file, so copy what must outlive a change of the file. Converted GGUF
    weights are kept on disk and mapped at the next start (see ``cache``).

    Args:
        dtype: float32, bfloat16 or float16.
        progress: told about stored bytes.
        skip: tensors of these names are left out: neither read nor converted nor kept.

    Raises:
        InvalidParameterError: another dtype.
        CheckpointError: a file changed or vanished since it was opened.
    """
    if dtype not in _NAMES:
        raise InvalidParameterError(
            f"dtype must be one of {[str(d) for d in _NAMES]}, got {dtype}", param="dtype"
        )
    progress = progress or NullProgress()
    tensors = {name: info for name, info in checkpoint.tensors.items() if skip is None or not skip(name)}
    progress.start(sum(info.num_bytes for info in tensors.values()), f"Loading {checkpoint.source.name}")
    try:
        if checkpoint.gguf is not None and _needs_conversion(tensors, dtype):
            names = None if len(tensors) == len(checkpoint.tensors) else tuple(tensors)
            cache = ConvertedCache(checkpoint.source.files, _NAMES[dtype], names)
            yield from _through_cache(cache, tensors, dtype, progress)
        else:
            yield from _convert_all(tensors, dtype, progress)
    finally:
        progress.done()


def _target(info: TensorInfo, dtype: torch.dtype) -> torch.dtype:
    """Small tensors whose precision matters keep it; stored block types have none to keep."""
    keep = len(info.shape) < 2 or info.name.endswith(_ROUTERS)
    return TORCH_DTYPES.get(info.dtype, torch.float32) if keep else dtype


def _needs_conversion(tensors: Tensors, dtype: torch.dtype) -> bool:
    return any(_NAMES[_target(info, dtype)] != info.dtype for info in tensors.values())


def _through_cache(
    cache: ConvertedCache, tensors: Tensors, dtype: torch.dtype, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    stored = cache.find()
    if stored is not None:
        with _Maps() as maps:
            for name, extent in stored.items():
                yield name, _view(maps, extent)
                progress.advance(tensors[name].num_bytes)
        return
    layout = [Layout(name, _NAMES[_target(info, dtype)], info.shape) for name, info in tensors.items()]
    with cache.writer(layout) as writer:
        for name, tensor in _convert_all(tensors, dtype, progress):
            writer.write(raw_bytes(tensor))
            yield name, tensor
        writer.commit()


def _convert_all(
    tensors: Tensors, dtype: torch.dtype, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    with _Maps() as maps:
        for name, info in tensors.items():
            yield name, _convert(maps, info, _target(info, dtype))
            progress.advance(info.num_bytes)


class TensorReader:
    """Single tensors of a checkpoint, in any order; use it in a ``with`` block."""

    def __init__(self) -> None:
        self._maps = _Maps()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._maps.__exit__()

    def read(self, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
        """One tensor in ``dtype``; a view of the mapped file where nothing is to convert.

        Raises:
            CheckpointError: the file changed or vanished since it was opened, or the tensor is damaged.
        """
        return _convert(self._maps, info, dtype)

    def release(self) -> None:
        """What was read need no longer be resident; tensors that are views of it stay good."""
        for mapped in self._maps.opened():
            mapped.madvise(mmap.MADV_DONTNEED)

    def read_kept(self, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
        """One tensor in the type of ``kept_dtype``."""
        return self.read(info, TORCH_DTYPES[kept_dtype(info, dtype)])


def kept_dtype(info: TensorInfo, dtype: torch.dtype) -> str:
    """The safetensors type that loses nothing a model in ``dtype`` uses: the stored one, unless that is of blocks."""
    return info.dtype if info.dtype in TORCH_DTYPES else _NAMES[_target(info, dtype)]


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a contiguous tensor."""
    return tensor.view(torch.uint8).reshape(-1).numpy().data


class _Maps:
    """Files mapped copy-on-write while weights are read; a tensor that is a view keeps its map alive."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> _Maps:
        return self

    def __exit__(self, *exc: object) -> None:
        self._maps.clear()

    def opened(self) -> Iterable[mmap.mmap]:
        return self._maps.values()

    def get(self, extent: Extent) -> mmap.mmap:
        if extent.file not in self._maps:
            try:
                with extent.file.open("rb") as file:
                    self._maps[extent.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{extent.file}: cannot be mapped: {error}") from error
        mapped = self._maps[extent.file]
        if extent.offset + extent.num_bytes > len(mapped):
            raise CheckpointError(f"{extent.file}: became shorter while it was read")
        return mapped


def _view(maps: _Maps, extent: Extent) -> torch.Tensor:
    """A tensor over the file's own bytes; a copy where they are not aligned for the type."""
    dtype, count = TORCH_DTYPES[extent.dtype], extent.num_bytes // ENCODINGS[extent.dtype].block_bytes
    if count == 0:
        return torch.empty(extent.shape, dtype=dtype)
    source = maps.get(extent)
    if extent.offset % dtype.itemsize:
        copied = bytearray(source[extent.offset : extent.offset + extent.num_bytes])
        return torch.frombuffer(copied, dtype=dtype).reshape(extent.shape)
    return torch.frombuffer(source, dtype=dtype, count=count, offset=extent.offset).reshape(extent.shape)


def _read(maps: _Maps, name: str, extent: Extent, dtype: torch.dtype) -> torch.Tensor:
    if extent.dtype in TORCH_DTYPES:
        return _view(maps, extent).to(dtype)
    return _dequantise(maps, name, extent, dtype)


def _dequantise(maps: _Maps, name: str, extent: Extent, dtype: torch.dtype) -> torch.Tensor:
    """Block types to ``dtype`` in chunks, so that the float32 between them never exists as a whole."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    encoding = ENCODINGS[extent.dtype]
    kind = GGMLQuantizationType[extent.dtype]
    stored = np.frombuffer(maps.get(extent), dtype=np.uint8, count=extent.num_bytes, offset=extent.offset)
    out = torch.empty(extent.num_bytes // encoding.block_bytes * encoding.block_size, dtype=dtype)
    chunk = CHUNK_NUMBERS // encoding.block_size
    for first in range(0, extent.num_bytes // encoding.block_bytes, chunk):
        # One long row: the library works row group by row group, and small groups cost more than their numbers.
        row = stored[first * encoding.block_bytes : (first + chunk) * encoding.block_bytes].reshape(1, -1)
        begin = first * encoding.block_size
        with np.errstate(all="ignore"):
            values = dequantize(row, kind).reshape(-1)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{extent.file}: tensor {name!r} holds scales that are not finite: it is damaged"
            )
        out[begin : begin + values.size] = torch.from_numpy(values)
    return out.reshape(extent.shape)


def _convert(maps: _Maps, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    if info.transform == "mla_kv_b":
        return _merge_kv_b(maps, info, dtype)
    extent = info.extents[0]
    if info.transform == "minus_one":
        return (_read(maps, info.name, extent, torch.float32) - 1.0).to(dtype)
    tensor = _read(maps, info.name, extent, dtype)
    if info.transform == "unpermute":
        tensor = _unpermute(tensor, info.num_heads)
    return tensor.reshape(info.shape)


def _unpermute(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head from pairs (0, E/2), (1, E/2 + 1), ... back to the order 0, 1, 2, ..."""
    half = rows.shape[0] // num_heads // 2
    return rows.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _merge_kv_b(maps: _Maps, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    key_HRN, value_HVR = (_read(maps, info.name, extent, dtype) for extent in info.extents)
    return torch.cat((key_HRN.transpose(1, 2), value_HVR), dim=1).reshape(info.shape)
