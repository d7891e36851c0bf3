"""Structured output: every way of saying what an answer must look like, as one constraint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import InvalidParameterError
from braid.server.dialects.fields import Items
from braid.server.guard.body import echo, nesting_exceeds
from braid.text.messages import MAX_DEPTH, check_depth

MAX_CHOICES = 4096
MAX_GBNF_CHARS = 32 << 10
"""Longer ones take too long to translate."""

_SCHEMA_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_IS_LARK = re.compile(r"(?m)^[^\S\n]*(?:%llguidance\b|start[^\S\n]*:(?!:=))")
"""Looks at each line alone: it is tried on texts of any length."""
_ANY_OBJECT = '{"type":"object"}'


class StructuredOutputs(BaseModel):
    """vLLM's object; one of its fields is set."""

    model_config = ConfigDict(strict=True)

    schema_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Items[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class StructuredFields(BaseModel):
    """The request fields that say what an answer must look like."""

    model_config = ConfigDict(strict=True)

    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Items[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    ebnf: str | None = None

    def constraint(self) -> Constraint | None:
        """The one constraint that is asked for; None where any text will do.

        Raises:
            InvalidParameterError: a field is malformed, or two ask for different things.
        """
        found = list(self._constraints())
        if len(found) > 1:
            message = f"{found[0].param} and {found[1].param} exclude each other"
            raise InvalidParameterError(message, param=found[1].param)
        return found[0] if found else None

    def _constraints(self) -> Iterator[Constraint]:
        if (wanted := format_constraint(self.response_format)) is not None:
            yield wanted
        yield from self._structured()
        readers: dict[str, Callable[[Any, str], Constraint]] = {
            "guided_json": schema_constraint,
            "guided_regex": regex_constraint,
            "guided_choice": choice_constraint,
            "guided_grammar": grammar_constraint,
            "json_schema": schema_constraint,
            "regex": regex_constraint,
            "grammar": grammar_constraint,
            "ebnf": grammar_constraint,
        }
        for name, read in readers.items():
            value = getattr(self, name)
            if value not in (None, "", []):
                yield read(value, name)

    def _structured(self) -> Iterator[Constraint]:
        given = self.structured_outputs
        if given is None:
            return
        param = "structured_outputs"
        if given.structural_tag:
            raise InvalidParameterError(f"{param}.structural_tag is not supported", param=param)
        if given.schema_ not in (None, ""):
            yield schema_constraint(given.schema_, param)
        if given.regex:
            yield regex_constraint(given.regex, param)
        if given.choice:
            yield choice_constraint(given.choice, param)
        if given.grammar:
            yield grammar_constraint(given.grammar, param)
        if given.json_object:
            yield Constraint(kind=ConstraintKind.JSON_SCHEMA, source=_ANY_OBJECT, param=param)


def format_constraint(form: Mapping[str, Any] | None, param: str = "response_format") -> Constraint | None:
    """OpenAI's format object, nested (``json_schema`` within) as in chat or flat as in responses.

    Raises:
        InvalidParameterError: another type, or a malformed schema.
    """
    kind = "text" if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        message = f"{param}.type must be text, json_object or json_schema, got {echo(kind)}"
        raise InvalidParameterError(message, param=param)
    if kind == "json_object" and form.get("schema") is None:
        return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=_ANY_OBJECT, param=param)
    spec = form.get("json_schema", form)
    if not isinstance(spec, Mapping):
        raise InvalidParameterError(f"{param}.json_schema must be an object", param=param)
    _check_spec(spec, param)
    return schema_constraint(spec.get("schema"), param)


def _check_spec(spec: Mapping[str, Any], param: str) -> None:
    name, strict, description = spec.get("name"), spec.get("strict"), spec.get("description")
    if name is not None and (not isinstance(name, str) or not _SCHEMA_NAME.fullmatch(name)):
        message = f"{param}: name must be 1 to 64 letters, digits, '_', '-' or '.', got {echo(name)}"
        raise InvalidParameterError(message, param=param)
    if strict is not None and not isinstance(strict, bool):
        raise InvalidParameterError(
            f"{param}: strict must be true, false or null, got {echo(strict)}", param=param
        )
    if description is not None and not isinstance(description, str):
        raise InvalidParameterError(
            f"{param}: description must be a string, got {echo(description)}", param=param
        )


def schema_constraint(schema: object, param: str) -> Constraint:
    """A JSON schema, as an object or as JSON text."""
    if isinstance(schema, str):
        schema = _parse(schema, param)
    if not isinstance(schema, dict):
        raise InvalidParameterError(f"{param}: the JSON schema must be an object", param=param)
    check_depth(schema, param)
    source = msgspec.json.encode(schema).decode()
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=source, param=param)


def _parse(text: str, param: str) -> object:
    data = text.encode()
    if nesting_exceeds(data, MAX_DEPTH):
        message = f"{param}: the JSON schema is nested deeper than {MAX_DEPTH} levels"
        raise InvalidParameterError(message, param=param)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidParameterError(f"{param}: the JSON schema is not valid JSON", param=param) from None


def regex_constraint(pattern: str, param: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, source=pattern, param=param)


def choice_constraint(choices: Sequence[str], param: str) -> Constraint:
    """One of the given texts."""
    if len(choices) > MAX_CHOICES:
        message = f"{param} has {len(choices)} choices, at most {MAX_CHOICES} are allowed"
        raise InvalidParameterError(message, param=param)
    if not all(choices):
        raise InvalidParameterError(f"{param}: a choice must not be empty", param=param)
    different = dict.fromkeys(choices)  # many equal ones would be a very ambiguous grammar
    source = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in different)
    return Constraint(kind=ConstraintKind.LARK, source=source, param=param)


def grammar_constraint(grammar: str, param: str) -> Constraint:
    """A grammar in Lark (its first rule is ``start``) or GBNF (``root``)."""
    source = grammar if _IS_LARK.search(grammar) else _from_gbnf(grammar, param)
    return Constraint(kind=ConstraintKind.LARK, source=source, param=param)


def _from_gbnf(grammar: str, param: str) -> str:
    from llguidance.gbnf_to_lark import (
        gbnf_to_lark,
    )  # not before somebody needs it: starting is faster without

    if len(grammar) > MAX_GBNF_CHARS:
        message = f"{param}: a GBNF grammar may have at most {MAX_GBNF_CHARS} characters"
        raise InvalidParameterError(message, param=param)
    try:
        return str(gbnf_to_lark(grammar))
    except Exception:  # the translator raises whatever it stumbles over
        message = f"{param} must be a Lark grammar with a rule 'start' or a GBNF grammar with a rule 'root'"
        raise InvalidParameterError(message, param=param) from None
