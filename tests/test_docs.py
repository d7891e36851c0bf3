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


def _find(dotted: str) -> object:
    """A module, or an attribute of the package such as ``braid.LLM``."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(importlib.import_module(module), name)
