"""What the text of an output must look like, as the engine is told it: one grammar, whatever the client's spelling."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from braid.core.errors import InvalidParameterError

MAX_SOURCE_BYTES = 256 << 10
JSON_BLANKS = r"( |\n[ \t]{0,40})?"
"""Between the parts of JSON: what people and programs write. Without a bound weak models write blanks for ever."""


class ConstraintKind(StrEnum):
    """The languages a constraint can be written in; all are llguidance's."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """The language of all outputs that a request allows.

    Args:
        kind: what ``source`` is written in.
        source: a JSON schema as JSON text (``{"type": "object"}`` is any object), a regular expression, or a Lark
            grammar in llguidance's dialect.
        param: the request field it came from, for errors.

    Raises:
        InvalidParameterError: the source is longer than ``MAX_SOURCE_BYTES``.
    """

    kind: ConstraintKind
    source: str
    param: str = "response_format"

    def __post_init__(self) -> None:
        size = len(self.source.encode())
        if size > MAX_SOURCE_BYTES:
            message = f"{self.param} has {size} bytes, at most {MAX_SOURCE_BYTES} are allowed"
            raise InvalidParameterError(message, param=self.param)
