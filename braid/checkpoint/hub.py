"""Models of a Hugging Face hub: which files to fetch, fetching them, and what an earlier fetch left on disk.

Only configuration, tokenizer, template and weight files in formats that cannot run code are ever fetched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from braid.checkpoint.progress import Progress
from braid.checkpoint.source import INDEX_NAME, index_shards, is_projector, split_names
from braid.core.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
)
DEFAULT_QUANTISATION = "Q4_K_M"
_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<quantisation>[\w.-]+))?", re.ASCII
)
_QUANTISATION = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d[\w]*|BF16|F16|F32))(?=[-._/]|$)", re.IGNORECASE)
_NETWORK_PACKAGES = frozenset({"huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """Which hub and which cache folder; None is what ``huggingface_hub`` is set up for."""

    endpoint: str | None = None
    cache_dir: Path | None = None

    def folder(self) -> Path:
        """The cache folder, shared with every other tool that uses ``huggingface_hub``."""
        from huggingface_hub import constants

        return self.cache_dir or Path(constants.HF_HUB_CACHE)


class HubId(NamedTuple):
    """``org/name``, ``org/name@revision``, ``org/name:QUANTISATION``, ``org/name@revision:QUANTISATION``."""

    repo: str
    revision: str
    quantisation: str | None


class Snapshot(NamedTuple):
    """A model on disk: its folder, or its GGUF file in it; and the commit."""

    path: Path
    revision: str


def parse_hub_id(name: str) -> HubId | None:
    """The hub id a name spells; None where it spells none."""
    match = _ID.fullmatch(name)
    if match is None or ".." in name or "--" in match["repo"]:
        return None
    return HubId(match["repo"], match["revision"] or "main", match["quantisation"])


def choose_gguf(names: Iterable[str], quantisation: str | None, repo: str) -> tuple[str, ...]:
    """The file (all parts of it) with this quantisation among a repository's files.

    Raises:
        ModelNotFoundError: there is no such file, or several, naming those there are.
    """
    models = sorted({_first_part(name) for name in names if _is_model(name)})
    wanted = quantisation or (DEFAULT_QUANTISATION if len(models) > 1 else None)
    found = [name for name in models if wanted is None or quantisation_of(name) == wanted.upper()]
    if len(found) == 1:
        folder = PurePosixPath(found[0]).parent
        return tuple(str(folder / part) for part in split_names(PurePosixPath(found[0]).name))
    there = sorted({quantisation_of(name) or name for name in models})
    problem = "has several files" if found else "has no file"
    raise ModelNotFoundError(
        f"{repo} {problem} of quantisation {wanted}; it has {', '.join(there[:40]) or 'no GGUF files'}: "
        f"name one as {repo}:QUANTISATION"
    )


def quantisation_of(name: str) -> str | None:
    """The quantisation that a GGUF file's name spells last (``model-Q4_K_M.gguf`` -> ``Q4_K_M``)."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", name, flags=re.IGNORECASE)
    found = _QUANTISATION.findall(stem)
    return found[-1].upper() if found else None


def _is_model(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() == ".gguf" and not is_projector(path.name) and ".." not in path.parts


def _first_part(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / split_names(path.name)[0])


def cached(hub_id: HubId, hub: Hub) -> Snapshot | None:
    """What an earlier fetch of this id left on disk; no network."""
    base = hub.folder() / f"models--{hub_id.repo.replace('/', '--')}"
    reference = base / "refs" / hub_id.revision
    try:
        commit = reference.read_text("ascii").strip() if reference.is_file() else hub_id.revision
    except (OSError, UnicodeDecodeError):
        return None
    folder = base / "snapshots" / commit
    if "/" in commit or not folder.is_dir():
        return None
    names = [str(file.relative_to(folder)) for file in folder.rglob("*.gguf")]
    if hub_id.quantisation is None and not (names and _only_gguf(folder)):
        return Snapshot(folder, commit)
    try:
        return Snapshot(folder / choose_gguf(names, hub_id.quantisation, hub_id.repo)[0], commit)
    except ModelNotFoundError:
        return None


def _only_gguf(folder: Path) -> bool:
    return not any(folder.glob("*.safetensors"))


def fetch(hub_id: HubId, hub: Hub, progress: Progress) -> Snapshot:
    """Bring a model's files to disk; files already there are not fetched again, half-fetched ones are continued.

    Falls back to what is on disk, with a warning, where the hub cannot be reached.

    Raises:
        ModelNotFoundError: no such repository, revision or quantisation, no access, or no network and nothing on disk.
    """
    try:
        return _fetch(hub_id, hub, progress)
    except Exception as error:
        # The client library's network errors have no common base over its versions.
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _NETWORK_PACKAGES:
            raise
        reason = _explain(error)
        local = None if reason else cached(hub_id, hub)
        if local is None:
            raise ModelNotFoundError(
                f"{hub_id.repo}: {reason or f'the hub cannot be used: {error}'}"
            ) from error
        logger.warning("The hub cannot be used (%s); serving %s from %s", error, hub_id.repo, local.path)
        return local


def _explain(error: Exception) -> str | None:
    """A refusal that the cache must not paper over; None for trouble on the way to the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "this repository is gated: accept its terms on the hub, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub (or it is private: log in with `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision of this repository"
    return None


def _fetch(hub_id: HubId, hub: Hub, progress: Progress) -> Snapshot:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=hub.endpoint).model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    weights = _choose_weights(sizes, hub_id, hub)
    side = [name for name in SIDE_FILES if name in sizes]
    names = [*side, *weights]
    total = sum(sizes.get(name, 0) for name in names)
    progress.start(total, f"Downloading {hub_id.repo}")
    try:
        paths = [_download(name, sizes.get(name, 0), hub_id, hub, progress) for name in names]
    finally:
        progress.done()
    roots = {_root(path, name) for path, name in zip(paths, names, strict=True)}
    if len(roots) != 1:
        raise ModelNotFoundError(f"{hub_id.repo} changed on the hub during the download; try again")
    root = roots.pop()
    return Snapshot(paths[len(side)] if weights[0].endswith(".gguf") else root, root.name)


def _root(path: Path, name: str) -> Path:
    return path.parents[len(PurePosixPath(name).parts) - 1]


def _choose_weights(sizes: Mapping[str, int], hub_id: HubId, hub: Hub) -> list[str]:
    plain = [
        name
        for name in sizes
        if "/" not in name
        and name.endswith(".safetensors")
        and not name.startswith(("consolidated", "adapter"))
    ]
    if hub_id.quantisation is not None or not plain:
        if not any(_is_model(name) for name in sizes):
            raise ModelNotFoundError(
                f"{hub_id.repo} has neither .safetensors nor .gguf files (pickled weights are never fetched)"
            )
        return list(choose_gguf(sizes, hub_id.quantisation, hub_id.repo))
    if INDEX_NAME in sizes:
        index = _download(INDEX_NAME, 0, hub_id, hub, None)
        return [INDEX_NAME, *index_shards(index)]
    return ["model.safetensors"] if "model.safetensors" in plain else sorted(plain)


def _download(name: str, size: int, hub_id: HubId, hub: Hub, progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download

    meter = _Meter(progress)
    path = hf_hub_download(
        hub_id.repo,
        name,
        revision=hub_id.revision,
        endpoint=hub.endpoint,
        cache_dir=hub.folder(),
        tqdm_class=meter.bar_class(),
    )
    meter.advance(size - meter.num_bytes)
    return Path(str(path))


class _Meter:
    """Counts one file's bytes on behalf of the library's progress bar."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.num_bytes = 0

    def advance(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if self.progress is not None:
            self.progress.advance(num_bytes)

    def bar_class(self) -> Any:
        from huggingface_hub.utils.tqdm import tqdm

        meter = self

        class Bar(tqdm):
            """The library's bar, drawn nowhere."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]
                meter.advance(int(options.get("initial") or 0))

            def update(self, n: float | None = 1) -> None:
                meter.advance(int(n or 0))

        return Bar
