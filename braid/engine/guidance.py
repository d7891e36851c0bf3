"""The one module that speaks to llguidance: its limits, the vocabulary as it wants it, and compiling under both.

What a compile may cost, with the limits below (llguidance 1.9.1, 49,152 tokens, one core): objects of 5, 100 and 2,000
fields take 1, 4 and 130 ms, an enum of 10,000 strings 40 ms. A mask costs 0.03 ms in the mean and 4 ms at most, except
for grammars made to be ambiguous: those are stopped by the time they use (``braid.runner.constraint``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from braid.core.constraint import JSON_BLANKS, Constraint, ConstraintKind
from braid.core.errors import InvalidParameterError

if TYPE_CHECKING:
    import llguidance

LIMITS: Mapping[str, int | bool] = MappingProxyType(
    {
        "max_grammar_size": 250_000,  # symbols; an object has about 20 per field
        "initial_lexer_fuel": 500_000,  # about 10 ms of building regular expressions
        "max_lexer_states": 20_000,  # 1-2 kB each, so 40 MB for the greediest request
        "max_items_in_row": 1_000,  # an object takes 4 per optional field that may come next
        "step_max_items": 10_000,  # about 0.5 ms of parsing per mask
        "step_lexer_fuel": 50_000,  # about 3.5 ms of lexing per mask
        "precompute_large_lexemes": False,  # it makes a compile depend on the vocabulary, and no mask cheaper
        "verbose_errors": False,  # errors must not repeat the grammar
    }
)
MAX_REASON = 200
"""Characters of llguidance's own words in an error."""
_LONG_QUOTE = re.compile(r'"[^"]{32,}("|$)')


class GrammarError(Exception):
    """Why llguidance refuses a source; may quote it."""


class Vocabulary(NamedTuple):
    """What a grammar has to know of a tokenizer.

    ``tokens`` are the bytes of every id (empty where an id stands for nothing), ``special`` and ``end`` are ids;
    ``encode`` turns plain text into ids; special tokens spelled out are plain text, too.
    """

    tokens: Sequence[bytes]
    special: frozenset[int]
    end: frozenset[int]
    encode: Callable[[str], list[int]]


class _Source:
    """A vocabulary in the shape that llguidance asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = sorted(vocabulary.special | vocabulary.end)
        self.eos_token_id = min(vocabulary.end)
        self._encode = vocabulary.encode
        special = set(self.special_token_ids)
        plain = ((token, id) for id, token in enumerate(self.tokens) if token and id not in special)
        self._ids = dict(plain)
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Ids that spell exactly this text. Where a grammar leaves no choice, llguidance allows these ids alone.

        Tokenizers that put a blank before every text, or change it otherwise, are not used for it.
        """
        ids, data = self._encode(text), text.encode()
        spelled = b"".join([self.tokens[id] for id in ids if id < len(self.tokens)])
        return ids if spelled == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token that fits, again and again."""
        ids: list[int] = []
        while data:
            sizes = range(min(len(data), self._longest), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), 0)
            if size == 0:
                return []
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids


def require(param: str) -> None:
    """Check that constraints can be had at all.

    Raises:
        InvalidParameterError: llguidance is not installed.
    """
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise InvalidParameterError(
            "structured output needs the package llguidance, which is not installed on this server; "
            "pip install 'llguidance>=1.9,<2'",
            param=param,
        ) from error


def make_tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """llguidance's view of a vocabulary; any of its end tokens may end an output."""
    import llguidance

    source: Any = _Source(vocabulary)
    return llguidance.LLTokenizer(source, eos_token=sorted(vocabulary.end))


def compile_constraint(tokenizer: llguidance.LLTokenizer, constraint: Constraint) -> llguidance.LLMatcher:
    """A matcher at the beginning of an output, whose first mask has been computed.

    Lets other threads run meanwhile.

    Raises:
        GrammarError: the source is wrong, beyond the limits, or uses what llguidance does not support.
    """
    import llguidance

    to_grammar: dict[ConstraintKind, Callable[[str], str]] = {
        ConstraintKind.JSON_SCHEMA: partial(
            llguidance.LLMatcher.grammar_from_json_schema, defaults={"whitespace_pattern": JSON_BLANKS}
        ),
        ConstraintKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
        ConstraintKind.LARK: llguidance.LLMatcher.grammar_from_lark,
    }
    try:
        grammar = to_grammar[constraint.kind](constraint.source)
    except ValueError as error:  # JSON that is none
        raise GrammarError(str(error)) from None
    limits: Any = dict(LIMITS)
    matcher = llguidance.LLMatcher(
        tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**limits)
    )
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(matcher.get_error())
    return matcher


_WORDS = {
    ConstraintKind.JSON_SCHEMA: "JSON schema",
    ConstraintKind.REGEX: "regex",
    ConstraintKind.LARK: "grammar",
}


def refusal(constraint: Constraint, reason: str) -> InvalidParameterError:
    """The error for a constraint that cannot be enforced; never with the source in it."""
    words = _WORDS[constraint.kind]
    return InvalidParameterError(
        f"{constraint.param} cannot be enforced: the {words} is not valid, not supported or too large: "
        f"{_brief(reason)}",
        param=constraint.param,
    )


def _brief(reason: str) -> str:
    """One line of llguidance's reason, cut, without what it quotes at length."""
    lines = reason.strip().splitlines() or ["no reason given"]
    named = [
        line for line in lines if line.startswith("error: ")
    ]  # regex errors draw a picture before they say it
    line = (named or lines)[0].removeprefix("error: ")
    if line == "NoExtensionBias":
        return "no output can satisfy it within the limits"
    line = _LONG_QUOTE.sub('"..."', line)
    return line if len(line) <= MAX_REASON else line[:MAX_REASON] + "..."
