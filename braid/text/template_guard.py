"""Bounds the strings that a chat template builds. Fuel counts steps, but one step can double a string.

A check is written into the template after every tag that gives a value a name (``set``, ``for``, ``with``, ``macro``,
``call``): it tells the length of a string, never the string, to ``CHARGE``. What has no name is bounded by the length
of the expression: each tag may join ``MAX_JOINS`` values. Not bounded are single steps that multiply by
themselves, such as ``a.replace('x', a)``, and lists, which take no memory as they are joined but time when they are
walked. ``braid.text.template_probe`` sees these where they always happen.
"""

from __future__ import annotations

import re

CHARGE = "__braid_charge"
MAX_JOINS = 200
_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_PIECE = re.compile(
    r"\{#.*?#\}"
    r"|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}"
    rf"|\{{\{{(?:{_STRING}|[^'\"])*?\}}\}}"
    rf"|(?P<open>\{{%[-+]?)\s*(?P<word>\w+)(?P<rest>(?:{_STRING}|[^'\"])*?)(?P<close>[-+]?%\}})",
    re.DOTALL,
)
_IN_QUOTES = re.compile(_STRING, re.DOTALL)
_NAME = r"[A-Za-z_]\w*"
_SET = re.compile(rf"\s*\(?((?:{_NAME}|[.,\s])+)\)?\s*=(?!=)")
_FOR = re.compile(rf"\s*\(?((?:{_NAME}|[,\s])+?)\)?\s+in\b")
_WITH = re.compile(rf"({_NAME})\s*=(?!=)")
_PARAMETERS = re.compile(r"\s*(?:\w+\s*)?\(([^()]*)")
_DOTTED = re.compile(rf"{_NAME}(?:\s*\.\s*{_NAME})*")


def guard(source: str) -> str:
    """The template with checks; prints the same."""
    return _PIECE.sub(_checked, source)


def too_many_joins(source: str) -> bool:
    """Whether one tag joins more values than ``MAX_JOINS``."""
    for match in _PIECE.finditer(source):
        if not match[0].startswith("{#"):
            bare = _IN_QUOTES.sub("", match[0])
            if sum(map(bare.count, "~+*")) > MAX_JOINS:
                return True
    return False


def _checked(match: re.Match[str]) -> str:
    names = _names(match["word"], match["rest"]) if match["word"] else []
    if not names:
        return match[0]
    close = match["close"]
    begin, end = ("{%-", "-%}") if close == "-%}" else ("{%", close)
    inner = "-%}" if close == "-%}" else "%}"
    tests = " or ".join(f"({name} is string and {CHARGE}({name}|length))" for name in names)
    tag = match[0][: -len(close)]
    return f"{tag}{inner}{begin} if {tests} {inner}{begin} endif {end}"


def _names(word: str, rest: str) -> list[str]:
    bare = _IN_QUOTES.sub("''", rest)
    match word:
        case "set":
            found = _SET.match(bare)
            return [] if found is None else _DOTTED.findall(found[1])
        case "for":
            found = _FOR.match(bare)
            return [] if found is None else _DOTTED.findall(found[1])
        case "with":
            return _WITH.findall(bare)
        case "macro" | "call":
            found = _PARAMETERS.match(bare)
            return [] if found is None else re.findall(rf"(?:^|,)\s*({_NAME})", found[1])
    return []
