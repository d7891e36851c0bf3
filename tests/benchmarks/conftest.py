"""Benchmarks are scripts beside each other, not a package: their folder joins the path, behind everything else."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
