"""The floors hold: by the contracts of ``.importlinter``, and by what is really loaded in a fresh process."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import braid

ROOT = Path(__file__).parent.parent
PURE = ("core", "policy", "sched", "sim")
HTTP_PROCESS = ("server", "text", "checkpoint", "engine.client", "engine.protocol", "models.spec")
MAKES_TENSORS = {f"braid.checkpoint.{name}" for name in ("convert", "quantise", "weights")}

LOADED = """
import importlib, json, sys
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def modules_of(rooms: tuple[str, ...]) -> list[str]:
    every = [info.name for info in pkgutil.walk_packages(braid.__path__, "braid.", onerror=None)]
    names = [n for n in every if any(f"{n}.".startswith(f"braid.{room}.") for room in rooms)]
    assert len(names) >= len(rooms)
    return [name for name in names if name not in MAKES_TENSORS]


def loaded_by(names: list[str]) -> set[str]:
    """Top-level modules that a fresh process holds after importing ``names``."""
    command = [sys.executable, "-c", LOADED, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_contracts_hold() -> None:
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_decisions_and_the_simulator_load_the_standard_library_only() -> None:
    foreign = loaded_by(modules_of(PURE)) - sys.stdlib_module_names - {"braid"}
    assert foreign == set()


def test_the_http_process_loads_no_torch() -> None:
    assert not loaded_by(modules_of(HTTP_PROCESS)) & {"torch", "transformers"}
