"""What a server says of itself and of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braid.lab.replay.asking.http import Answer, Asker, TargetError, clean, count_at, dig

_CONTEXT_NAMES = ("max_model_len", "context_length", "max_context_length", "context_window")
_MOST_SHOWN = 10


class Card(NamedTuple):
    """What a server says of a model; ``header`` is what it says of itself."""

    model: str
    fields: Mapping[str, Any]
    header: str
    notes: tuple[str, ...] = ()


def find_card(asker: Asker, wanted: str | None) -> Card:
    """The card of the model that is wanted.

    Raises:
        TargetError: there is none, or more than one where none is named.
    """
    url = asker.place.url
    answer = asker.get("/v1/models")
    header = clean(answer.headers.get("server", ""), 80)
    listed = dig(answer.json, "data") if answer.ok else None
    if not isinstance(listed, list):
        model = _require_way_in(answer, wanted, url)
        return Card(model, {}, header, (f"{url}/v1/models lists nothing, it answers {answer.reason}.",))
    cards = {name: card for card in reversed(listed) if isinstance(name := dig(card, "id"), str)}
    names = list(reversed(cards))
    shown = ", ".join(repr(clean(name)) for name in names[:_MOST_SHOWN]) or "nothing"
    if len(names) > _MOST_SHOWN:
        shown += f" and {len(names) - _MOST_SHOWN} more"
    if wanted is not None and wanted not in cards:
        raise TargetError(f"{url} does not serve {wanted!r}; it serves {shown}")
    if wanted is None and not _one_model(list(cards.values())):
        raise TargetError(f"name the model: {url} serves {shown}")
    name = wanted or names[0]
    return Card(name, cards[name], header)


def _one_model(cards: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all cards are names of one model."""
    roots = {card["root"] if isinstance(card.get("root"), str) else card["id"] for card in cards}
    return len(roots) == 1


def _require_way_in(answer: Answer, wanted: str | None, url: str) -> str:
    if answer.status in (401, 403):
        raise TargetError(f"{url} wants an API key, or another one: {answer.reason}")
    if answer.ok or wanted is None:
        raise TargetError(
            f"{url}/v1/models answers {answer.reason}; is that the base URL of an OpenAI-compatible server?"
        )
    return wanted


def context_of(asker: Asker, card: Card) -> int | None:
    """The longest prompt and output together, if the server tells it anywhere."""
    said = next((said for name in _CONTEXT_NAMES if (said := count_at(card.fields, name))), None)
    if said is None and (props := asker.maybe("GET", "/props")) is not None:
        said = count_at(props.json, "default_generation_settings", "n_ctx")
    return said or count_at(card.fields, "meta", "n_ctx")


def name_of(asker: Asker, card: Card) -> str:
    """Name and version, as far as the server tells them."""
    answer = asker.maybe("GET", "/version")
    version = None if answer is None else dig(answer.json, "version")
    owner = card.fields.get("owned_by") if isinstance(version, str) else None
    parts = (owner, version) if isinstance(owner, str) else (card.header, version)
    return clean(" ".join(part for part in parts if isinstance(part, str) and part), 80)
