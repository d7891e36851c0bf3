"""The only place that reads the environment."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for by-products: ``BRAID_CACHE``, else ``$XDG_CACHE_HOME/braid``, else ``~/.cache/braid``."""
    explicit = os.environ.get("BRAID_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "braid"


def engine_environment() -> dict[str, str]:
    """The environment of an engine process: this one's, with OpenMP threads that sleep while they wait.

    The kernels have a team of their own; threads of torch's that spin between its few parallel operations would take
    a core from it.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def forced_cpu_isa() -> str | None:
    """``BRAID_CPU_ISA``: the instruction set native kernels must use (tests run them all); None picks the best."""
    return os.environ.get("BRAID_CPU_ISA") or None


def named(name: str) -> str | None:
    """The variable that the user named on a command line, such as the one that holds a key; None if it is not set."""
    return os.environ.get(name)
