"""From a model's name to its files: an alias, a path, or a hub id. Only hub ids ever touch the network."""

from __future__ import annotations

from pathlib import Path

from braid.checkpoint import hub as hub_module
from braid.checkpoint.aliases import ALIASES, DEFAULT_MODEL, find_alias, locate
from braid.checkpoint.hub import Hub, HubId, parse_hub_id
from braid.checkpoint.progress import NullProgress, Progress
from braid.checkpoint.source import ModelSource, local_source
from braid.core.errors import ModelNotFoundError

__all__ = ["DEFAULT_MODEL", "ModelSource", "pull", "resolve"]


def resolve(
    name: str, *, progress: Progress | None = None, offline: bool = False, hub: Hub | None = None
) -> ModelSource:
    """Find a model's files, fetching a hub model that is not on disk or not current.

    Args:
        name: an alias (``smollm2-135m``), a folder with config.json, a ``.gguf`` file (any part of a split one), or a
            hub id: ``org/name``, ``org/name:Q4_K_M``, ``org/name@revision``, ``org/name@revision:Q4_K_M``.
            A name that is several of these is the first of them.
        offline: take hub models from disk only.
        hub: another hub or cache folder than ``huggingface_hub`` is set up for.

    Raises:
        ModelNotFoundError: naming what was tried and the aliases.
        CheckpointError: the files found make no complete checkpoint.
    """
    alias = find_alias(name)
    if alias is not None:
        return local_source(name, locate(name, alias))
    path = Path(name).expanduser()
    if name and _exists(path):
        return local_source(name, path)
    hub_id = None if _spells_path(name) else parse_hub_id(name)
    if hub_id is None:
        raise ModelNotFoundError(
            f"model {name[:200]!r} was not found: no such file or folder, not a hub id (org/name), and not one of the "
            f"aliases: {', '.join(ALIASES)}"
        )
    return _from_hub(name, hub_id, hub or Hub(), progress or NullProgress(), offline)


def pull(name: str, progress: Progress | None = None, *, hub: Hub | None = None) -> ModelSource:
    """Bring a model to this machine's disk and check that it is whole.

    Raises:
        ModelNotFoundError, CheckpointError: as ``resolve`` and ``open_checkpoint``.
    """
    from braid.checkpoint.open import open_checkpoint

    source = resolve(name, progress=progress, hub=hub)
    open_checkpoint(source)
    return source


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        return False


def _spells_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.lower().endswith(".gguf")


def _from_hub(name: str, hub_id: HubId, hub: Hub, progress: Progress, offline: bool) -> ModelSource:
    try:
        snapshot = hub_module.cached(hub_id, hub) if offline else hub_module.fetch(hub_id, hub, progress)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"model {name!r} was not found: no such path, and {error}. Aliases: {', '.join(ALIASES)}"
        ) from error
    if snapshot is None:
        raise ModelNotFoundError(
            f"model {name!r} was not found: no such path, and it is not among the downloaded models in {hub.folder()} "
            f"(offline). Aliases: {', '.join(ALIASES)}"
        )
    return local_source(name, snapshot.path, revision=snapshot.revision)
