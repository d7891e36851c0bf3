"""The documents name things that exist."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
NAME = re.compile(r"`(braid(?:\.\w+)+)(?::([\w.]+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
ROOM_FILE = re.compile(r"`([a-z_]+/[a-z_/]*\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


# What the API page names is on the wire; tests/test_api_docs.py checks it.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "api.md"], ids=lambda page: page.name
)
def test_names_exist(page: Path) -> None:
    for module, name in NAME.findall(page.read_text()):
        found = _find(module) if not name else importlib.import_module(module)
        reduce(getattr, name.split(".") if name else (), found)


def test_files_on_the_map_exist() -> None:
    for name in ROOM_FILE.findall((ROOT / "docs" / "map.md").read_text()):
        assert (ROOT / "braid" / name).exists(), name


@pytest.mark.parametrize(
    "room", ["policy/agents", "policy/experts", "runner/experts", "sched", "server/programs", "sim/experts"]
)
def test_no_file_of_a_room_with_a_table_is_off_the_map(room: str) -> None:
    page = (ROOT / "docs" / "map.md").read_text()
    files = [path.name for path in (ROOT / "braid" / room).glob("*.py") if path.name != "__init__.py"]
    assert files
    assert [name for name in files if f"`{room}/{name}`" not in page] == []


def test_all_rooms_are_on_the_map() -> None:
    page = (ROOT / "docs" / "map.md").read_text()
    files = (path.relative_to(ROOT / "braid") for path in (ROOT / "braid").glob("*/**/*.py"))
    rooms = {str(path.parent) for path in files if path.name != "__init__.py"}
    assert len(rooms) > 30
    assert sorted(room for room in rooms if f"`{room}/`" not in page) == []


def _find(dotted: str) -> object:
    """A module, or an attribute of the package such as ``braid.LLM``."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(importlib.import_module(module), name)
