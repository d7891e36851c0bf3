"""What the dialects do alike with request fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from braid.server.observe.metrics import ServerMetrics


def note_ignored(metrics: ServerMetrics, fields: BaseModel, body: Mapping[str, Any]) -> list[str]:
    """Count the fields of a body that nobody knows; returns those that would have changed the output."""
    known = sum(name in body for name in type(fields).model_fields)
    metrics.ignored_fields.inc(len(body) - known)
    return []
