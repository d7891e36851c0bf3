"""What a client wishes for the KV of its prompt: many spellings, one ``RetainIntent``, an outcome for each wish.

The spellings are rows of ``FIELDS``; what does not fit a row (cache controls in blocks, verbs in lists) has a reader of
its own. All wishes are advisory: a wrong type is an error, an unknown key is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from braid.core.program import Applied, Outcome, RetainIntent
from braid.policy.agents.wishes import ALWAYS, FORESIGHT, LIFETIMES
from braid.server.programs.fields import count, dig, integer, milliseconds, text, ttl, wrong

MAX_BOUNDARIES = 4
"""Prefixes that one request may mark; the last ones count."""
DEFAULT_TTL = 300.0
"""Seconds that a cache control without a ``ttl`` asks for."""
IN_MEMORY_SECONDS = 3600.0
"""The longest that ``prompt_cache_retention: in_memory`` keeps a prefix."""
ACTED_ON = frozenset((*ALWAYS, *FORESIGHT, *LIFETIMES))
"""The wishes that the default policy acts on; others act on fewer. The rest is checked and has no effect: a priority
that anybody may hint, beside the field ``priority``, would soon be everybody's."""

BRAID, DIALECT = 0, 1
"""An explicit field of ours beats one of a dialect."""

_VERBS = {"offload": "demote", "demote": "demote", "prefetch": "prefetch", "evict": "evict"}
_BLOCK_KEYS = ("cache_control", "prompt_cache_breakpoint")
_MAX_VERBS = 64
_LIFETIMES = ("min_s", "max_s")
"""Who keeps the strictest of these keeps the others, too."""


class Field(NamedTuple):
    """One spelling: where it stands, what it sets (None: known, and of no use here), and how to read it."""

    path: str
    sets: str | None
    read: Callable[[object, str], Any]
    level: int = DIALECT

    @property
    def key(self) -> str:
        """The field of the body that must be there."""
        return self.path.partition(".")[0]


def _anything(value: object, path: str) -> object:
    return value


def _earlier(value: object, path: str) -> int:
    """A priority that grows with importance; ours falls."""
    return -integer(value, path)


def _retention(value: object, path: str) -> float:
    if isinstance(value, str) and value.strip().lower() in ("in_memory", "in-memory"):
        return IN_MEMORY_SECONDS
    return ttl(value, path)


FIELDS = (
    Field("prompt_cache_options.ttl", "min_s", ttl),
    Field("prompt_cache_options.mode", "mode", text),
    Field("prompt_cache_retention", "max_s", _retention),
    Field("agent_hints.priority", "priority", integer, BRAID),
    Field("agent_hints.osl", "expected_out", count, BRAID),
    Field("agent_hints.deadline_s", "deadline_s", ttl, BRAID),
    Field("agent_hints.lease_s", "lease_s", ttl, BRAID),
    Field("agent_hints.tool.name", "tool", text, BRAID),
    Field("agent_hints.tool.expected_s", "return_s", ttl, BRAID),
    Field("agent_hints.tool.p90_s", "return_p90_s", ttl, BRAID),
    Field("agent_hints.cache_ttl_ms", "min_s", milliseconds),
    Field("agent_hints.expected_tool_duration_ms", "return_s", milliseconds),
    Field("agent_hints.expected_tool_duration_s", "return_s", ttl),
    Field("agent_hints.reuse_hint", None, _anything),
    Field("agent_hints.agent_id", None, _anything),
    Field("nvext.agent_hints.priority", "priority", _earlier),
    Field("nvext.agent_hints.osl", "expected_out", count),
    Field("nvext.agent_hints.iat", "return_s", milliseconds),
    Field("nvext.agent_hints.strict_priority", None, _anything),
    Field("nvext.agent_hints.speculative_prefill", None, _anything),
    Field("nvext.agent_hints.latency_sensitivity", None, _anything),
    Field("nvext.agent_hints.total_requests", None, _anything),
    Field("nvext.agent_hints.prefix_id", None, _anything),
    Field("this_func_call", "tool", text),
    Field("last_func_call", "tool", text),
    Field("vllm_xargs.this_func_call", "tool", text),
    Field("vllm_xargs.last_func_call", "tool", text),
)
CONTROLS = ("agent_hint.cache_control", "nvext.cache_control", "cache_control")
"""Where an object ``{type, ttl}`` stands for the prompt as a whole."""
CLOSED = {
    "prompt_cache_options": frozenset(("mode", "ttl")),
    "agent_hint": frozenset(("session_id", "parent_session_id", "cache_control", "context_management")),
    "agent_hints": frozenset(
        ("workflow_id", *(f.path.split(".")[1] for f in FIELDS if f.path.startswith("agent_hints.")))
    ),
    "nvext.agent_hints": frozenset(f.path.split(".")[2] for f in FIELDS if f.path.startswith("nvext.")),
}
"""Objects whose other keys are reported as ignored."""


_KEYED = tuple((field.key, field) for field in FIELDS)
_KEYS = frozenset((*(key for key, _ in _KEYED), *(path.partition(".")[0] for path in (*CONTROLS, *CLOSED))))
"""Fields of a body that may hold a wish; others are in the blocks of the conversation."""


class Wish(NamedTuple):
    path: str
    sets: str
    value: Any
    level: int = DIALECT


class Wishes(NamedTuple):
    """What a body asks for; ``intent`` is None where it asks for nothing.

    ``marked_only``: a prefix is worth keeping only up to where the client marked it.
    """

    intent: RetainIntent | None = None
    outcomes: tuple[Outcome, ...] = ()
    marked_only: bool = False


def read_wishes(body: Mapping[str, Any], *, max_ttl: float, acted_on: frozenset[str] = ACTED_ON) -> Wishes:
    """Every wish in a request body, merged.

    An explicit field of ours beats a dialect's. Of several lifetimes the longest ``min_s`` and the shortest ``max_s``
    hold, and where the two conflict ``max_s``. ``max_ttl`` (seconds) caps ``min_s`` and ``lease_s``.

    Raises:
        InvalidParameterError: a known field has a wrong type, or a time that is none.
    """
    marks = _marks(body)
    if not marks and _KEYS.isdisjoint(body):
        return Wishes()
    wishes: list[Wish] = []
    ignored: list[str] = []
    for key, entry in _KEYED:
        value = dig(body, entry.path) if key in body else None
        if value is None:
            continue
        read = entry.read(value, entry.path)
        if entry.sets is None:
            ignored.append(entry.path)
        else:
            wishes.append(Wish(entry.path, entry.sets, read, entry.level))
    controls = [*_controls(body), *marks]
    wishes.extend(controls)
    verbs, unknown = _verbs(body)
    ignored.extend(unknown)
    ignored.extend(_unknown_keys(body))
    outcomes = [Outcome(path, Applied.IGNORED, "unsupported") for path in ignored]
    marked_only = _marked_only(wishes)
    if marked_only and not controls:  # nothing is marked, so no prefix is meant
        outcomes += [
            Outcome(wish.path, Applied.IGNORED, "superseded") for wish in wishes if wish.sets == "min_s"
        ]
        wishes = [wish for wish in wishes if wish.sets != "min_s"]
    intent, merged = _merge(wishes, verbs, max_ttl, acted_on)
    return Wishes(intent, (*outcomes, *merged), marked_only)


def _marked_only(wishes: list[Wish]) -> bool:
    mode = next((wish for wish in wishes if wish.sets == "mode"), None)
    if mode is None:
        return False
    wishes.remove(mode)
    if mode.value not in ("implicit", "explicit"):
        raise wrong(mode.path, "'implicit' or 'explicit'", mode.value)
    return bool(mode.value == "explicit")


def _controls(body: Mapping[str, Any]) -> Iterator[Wish]:
    for path in CONTROLS:
        control = dig(body, path)
        if control is not None:
            yield Wish(path, "min_s", control_ttl(control, path))


def _marks(body: Mapping[str, Any]) -> list[Wish]:
    """The longest lifetime that any block asks for, by spelling."""
    longest: dict[str, float] = {}
    for key, control in marked_blocks(body):
        longest[key] = max(longest.get(key, 0.0), control_ttl(control, key))
    return [Wish(f"blocks.{key}", "min_s", seconds) for key, seconds in longest.items()]


def control_ttl(control: object, path: str) -> float:
    """Seconds that ``{"type": "ephemeral", "ttl": "5m"}`` and its like ask for."""
    if not isinstance(control, Mapping):
        raise wrong(path, "an object", control)
    kind = control.get("type", "ephemeral")
    if not isinstance(kind, str):
        raise wrong(f"{path}.type", "a string", kind)
    given = control.get("ttl")
    return DEFAULT_TTL if given is None else ttl(given, f"{path}.ttl")


def marked_blocks(body: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Every mark on a block of the conversation, its system text or its tools."""
    found: list[tuple[str, object]] = []
    for name in ("system", "tools", "messages", "input"):
        entries = body.get(name)
        for entry in entries if isinstance(entries, list) else ():
            found += entry_marks(entry)
    return found


def entry_marks(entry: object) -> list[tuple[str, object]]:
    """The marks on a message (or block, or tool) and on the blocks of its content.

    Plain loops over dictionaries: a conversation has thousands of blocks, and nearly none is marked.
    """
    if not isinstance(entry, dict):
        return []
    content = entry.get("content")
    found = []
    for block in (entry, *content) if isinstance(content, list) else (entry,):
        if isinstance(block, dict):
            for key in _BLOCK_KEYS:
                value = block.get(key)
                if value is not None:
                    found.append((key, value))
    return found


def _verbs(body: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    path = "agent_hint.context_management.edits"
    edits = dig(body, path)
    if edits is None:
        return (), []
    if not isinstance(edits, list) or len(edits) > _MAX_VERBS:
        raise wrong(path, f"a list of at most {_MAX_VERBS} edits", edits)
    verbs = []
    ignored = []
    for edit in edits:
        kind = edit.get("type") if isinstance(edit, Mapping) else edit
        verb = _VERBS.get(text(kind, f"{path}.type").lower())
        if verb is None:
            ignored.append(f"{path}.*")
        else:
            verbs.append(verb)
    return tuple(dict.fromkeys(verbs)), ignored[:1]


def _unknown_keys(body: Mapping[str, Any]) -> Iterator[str]:
    """Named by the object that holds them: what a client calls its keys is not for labels and headers."""
    for path, known in CLOSED.items():
        held = dig(body, path)
        if held is None:
            continue
        if not isinstance(held, Mapping):
            raise wrong(path, "an object", held)
        if not known.issuperset(held):
            yield f"{path}.*"


def _merge(
    wishes: Sequence[Wish], verbs: tuple[str, ...], max_ttl: float, acted_on: frozenset[str]
) -> tuple[RetainIntent | None, list[Outcome]]:
    if not wishes and not verbs:
        return None, []
    values: dict[str, Any] = {}
    reasons: dict[Wish, str] = {}
    clipped: dict[str, str] = {}
    for name in dict.fromkeys(wish.sets for wish in wishes):
        rivals = [wish for wish in wishes if wish.sets == name]
        best = min(wish.level for wish in rivals)
        chosen = values[name] = _choose(name, [wish.value for wish in rivals if wish.level == best])
        for wish in rivals:
            is_kept = wish.level == best and (name in _LIFETIMES or wish.value == chosen)
            if not is_kept:
                reasons[wish] = "superseded"
    for name in ("min_s", "lease_s"):
        if values.get(name, 0.0) > max_ttl:
            values[name], clipped[name] = max_ttl, "quota"
    if values.get("min_s", 0.0) > values.get("max_s", float("inf")):
        values["min_s"], clipped["min_s"] = values["max_s"], "superseded"
    outcomes = [_outcome(wish, reasons.get(wish), clipped, acted_on) for wish in wishes]
    outcomes += [_verb_outcome(verb, verbs, acted_on) for verb in verbs]
    sources = tuple(dict.fromkeys(wish.path for wish in wishes))
    return RetainIntent(**values, verbs=verbs, sources=sources), outcomes


def _choose(name: str, values: Sequence[Any]) -> Any:
    if name == "min_s":
        return max(values)
    return min(values) if name == "max_s" else values[0]


def _outcome(wish: Wish, reason: str | None, clipped: Mapping[str, str], acted_on: frozenset[str]) -> Outcome:
    if reason is not None:
        return Outcome(wish.path, Applied.IGNORED, reason)
    return Outcome(wish.path, *_state(wish.sets, clipped.get(wish.sets), acted_on))


def _verb_outcome(verb: str, verbs: Sequence[str], acted_on: frozenset[str]) -> Outcome:
    """A request brings back by itself what it can reuse, so a wish to prefetch is granted; the others wait for its
    end, where giving up beats setting aside."""
    wish = f"verbs.{verb}"
    if verb == "prefetch" and "verbs" in acted_on:
        return Outcome(wish, Applied.APPLIED)
    if verb == "demote" and "evict" in verbs:
        return Outcome(wish, Applied.IGNORED, "superseded")
    return Outcome(wish, *_state("verbs", None, acted_on))


def _state(name: str, clipped: str | None, acted_on: frozenset[str]) -> tuple[Applied, str | None]:
    """A wish that is acted on takes effect when the turn ends: until then it is deferred, cut to its cap or not."""
    if name not in acted_on:
        return Applied.IGNORED, "unsupported"
    return (Applied.DEFERRED, None) if clipped is None else (Applied.CLIPPED, clipped)
