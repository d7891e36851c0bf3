"""What the benchmarks share: the machine's description, medians, and results as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from braid.device.bandwidth import read_bandwidth
from braid.device.machine import probe

PACKAGES = ("braid", "torch", "transformers")
SERVE = [sys.executable, "-c", "import sys; from braid.cli import main; sys.exit(main())", "serve"]
FIRST_TOKEN = 1000
"""Random prompts stay clear of special tokens and single bytes."""

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """Everything a number must be read with: processor, memory, load, versions."""
    spec = probe()
    spec = replace(spec, memory_bandwidth=read_bandwidth(spec.cores))
    return {
        **asdict(spec),
        "load_average": os.getloadavg(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def describe(machine: Mapping[str, Any]) -> str:
    """The machine in two lines."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu_name']}, {machine['cores']} cores ({machine['isa']}), "
        f"{machine['ram_bytes'] / 2**30:.0f} GiB, {machine['memory_bandwidth'] / 1e9:.1f} GB/s read; "
        f"load {machine['load_average'][0]:.1f}\n{versions}, Python {machine['python']}"
    )


@contextmanager
def serving(model: str, *flags: str) -> Iterator[str]:
    """A server as users start it, on a free port; the URL, once it serves."""
    words = [*SERVE, model, "--port", "0", "--log-level", "error", *flags]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.match(r"Serving .* at (http://\S+)/v1$", line):
                yield found[1]
                return
        raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def random_prompt(length: int, vocab_size: int, seed: int) -> list[int]:
    """Token ids that no other seed shares a prefix with, so that no prefix cache can help."""
    numbers = random.Random(seed)
    return [numbers.randrange(FIRST_TOKEN, vocab_size) for _ in range(length)]


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows of equal keys as a table; floats with three significant digits, nested values not at all."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    console = Console()
    console.width = max(console.width, 120)
    console.print(table, crop=False)


def save(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result next to its machine."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
