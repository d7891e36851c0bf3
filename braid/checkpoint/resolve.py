"""From a model's name to its files: alias, path, or hub id."""

from __future__ import annotations

from pathlib import Path

from braid.checkpoint.aliases import ALIASES, DEFAULT_MODEL, find_alias, locate
from braid.checkpoint.progress import Progress
from braid.checkpoint.source import ModelSource, local_source
from braid.core.errors import ModelNotFoundError

__all__ = ["DEFAULT_MODEL", "ModelSource", "resolve"]


def resolve(name: str, *, progress: Progress | None = None, offline: bool = False) -> ModelSource:
    """Find a model's files."""
    alias = find_alias(name)
    if alias is not None:
        return local_source(name, locate(name, alias))
    path = Path(name).expanduser()
    if path.exists():
        return local_source(name, path)
    raise ModelNotFoundError(f"model {name!r} was not found: no such path; aliases: {', '.join(ALIASES)}")
