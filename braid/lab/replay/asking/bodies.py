"""Every request's bytes, written before the first is sent: what ``files.py`` says lies in a folder.

Nothing is built while the clock runs. Memory does not grow with the plan's tokens: the words of a few prompts are
made at a time, and go to the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.core.errors import CapacityError
from braid.lab.progress import NoProgress, Progress
from braid.lab.replay.asking.forms import PATHS, WordBytes, shape
from braid.lab.replay.asking.headers import common_headers, program_headers
from braid.lab.replay.asking.history import NONE, previous_turns, waiting_for
from braid.lab.replay.asking.http import TargetError, endpoint
from braid.lab.replay.asking.target import ServerFacts, Target
from braid.lab.replay.files import REQUEST, Form, History
from braid.lab.replay.planning.content import prompt_words
from braid.lab.replay.planning.plan import ReplayPlan
from braid.lab.table import TraceError

_PLACES = ("headers_at", "head_at", "new_at", "tail_at", "end_at")
_BUFFER = 2**20
_BATCH_WORDS = 2**13
"""Made at once: what is in work stays in a core's cache."""
_SHOW_EVERY = 256
_SPARE = 64 * 2**20
"""Left free on the disk for what a run writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bodies:
    """What a run must know of the bytes that were written; the first five are those of ``RunSpec``.

    Args:
        num_bytes: their size.
        num_longer: prompts that had to be longer than planned, because the server adds more than that by itself.
        notes: what is not as planned, one sentence each.
    """

    request_line: str
    headers: str
    form: Form
    before_reply: str
    after_reply: str
    num_bytes: int
    num_longer: int
    notes: tuple[str, ...]


def write_bodies(
    plan: ReplayPlan,
    facts: ServerFacts,
    target: Target,
    folder: Path,
    *,
    history: History = "recorded",
    seed: int | None = None,
    progress: Progress | None = None,
) -> Bodies:
    """Write ``bytes.bin``, ``after.npy`` and ``requests.npy`` into ``folder``.

    Args:
        seed: of the words; None for the plan's.

    Raises:
        CapacityError: the disk has not enough room.
        TargetError: the server lacks what a live history needs.
        TraceError: the files cannot be written.
    """
    if history == "live" and facts.form == "ids" and not facts.tells_ids:
        raise TargetError(
            "a live history of token ids needs a server that tells the ids of its replies (return_token_ids): "
            "use the form text or chat"
        )
    prompts = _Prompts(plan, facts, history, plan.options.seed if seed is None else seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(prompts.num_bytes, folder)
        table = prompts.write(folder / "bytes.bin", progress or NoProgress())
        np.save(folder / "after.npy", prompts.after())
        np.save(folder / "requests.npy", table)
    except OSError as error:
        raise TraceError(f"cannot write the requests to {folder}: {error.strerror or error}") from None
    place = endpoint(target.url)
    return Bodies(
        request_line=f"POST {place.root}{PATHS[facts.form]} HTTP/1.1",
        headers=common_headers(place.netloc, bool(facts.fields.get("stream"))),
        form=facts.form,
        before_reply=prompts.shape.before_reply.decode(),
        after_reply=prompts.shape.after_reply.decode(),
        num_bytes=prompts.num_bytes,
        num_longer=prompts.num_longer,
        notes=prompts.notes(),
    )


def _require_room(num_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes + _SPARE > free:
        raise CapacityError(
            f"the requests take {num_bytes / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free: "
            "use another folder (TMPDIR), a shorter stretch of the trace, or fewer programs"
        )


def _from_zero(counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where each begins and, last, where all end."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _batches(places: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut a row of things that lie between ``places`` into stretches of about ``_BATCH_WORDS``."""
    start, num = 0, places.size - 1
    while start < num:
        stop = max(start + 1, int(np.searchsorted(places, places[start] + _BATCH_WORDS, "right")) - 1)
        yield start, stop
        start = stop


class _Prompts:
    """The bytes of a plan's requests, one after another."""

    def __init__(self, plan: ReplayPlan, facts: ServerFacts, history: History, seed: int) -> None:
        frame = plan.frame
        self.shape = shape(facts.form, facts.model)
        self._facts, self._seed, self._live = facts, seed, history == "live"
        self._coded = WordBytes(facts.form, facts.vocabulary)
        self._history = previous_turns(frame) if self._live else np.full(frame.height, NONE, np.int64)
        self._frame = waiting_for(frame, self._history) if self._live else frame
        self._headers = program_headers(frame)
        self._out_tok = frame["out_tok"].to_list()
        self._tails = {num: self._tail(num) for num in set(self._out_tok)}
        self._first = np.where(self._history != NONE, frame["shared_tok"].to_numpy(), 0)
        self._num = self._lengths(frame["in_tok"].to_numpy())
        self._first = np.minimum(self._first, frame["in_tok"].to_numpy() - self._num)
        self.num_bytes = self._size()

    def _lengths(self, in_tok: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many words each request adds to what it holds of earlier ones, so that all make its prompt's length."""
        facts = self._facts
        least = 1 if facts.form == "ids" else 0
        wanted = in_tok - facts.overhead_tokens
        whole = np.maximum(in_tok, facts.overhead_tokens + least)
        for number in np.flatnonzero(self._history != NONE).tolist():
            before = self._history[number]
            held = whole[before] + self._out_tok[before] + facts.turn_overhead_tokens
            wanted[number] = in_tok[number] - held
            whole[number] = max(in_tok[number], held + least)
        self.num_longer = int((wanted < least).sum())
        return np.maximum(wanted, least)

    def notes(self) -> tuple[str, ...]:
        """What is not as planned."""
        notes = []
        if self.num_longer:
            added = max(self._facts.overhead_tokens, self._facts.turn_overhead_tokens)
            notes.append(
                f"Prompts that are longer than planned: {self.num_longer:,}; the server itself adds {added} tokens."
            )
        if self._live:
            num = int((self._history != NONE).sum())
            notes.append(
                f"Prompts that hold the replies that came, and are as long as these make them: {num:,}."
            )
        return tuple(notes)

    def write(self, path: Path, progress: Progress) -> npt.NDArray[Any]:
        """Write all bytes; the records of ``requests.npy``."""
        table = self._table()
        places = np.zeros((table.size, len(_PLACES)), np.int64)
        at = 0
        with path.open("wb", buffering=_BUFFER) as file:
            for number, new in enumerate(self._prompts()):
                if number % _SHOW_EVERY == 0:
                    progress.update("writing the requests", at, self.num_bytes)
                pieces = (self._headers[number], self.shape.head, new, self._tails[self._out_tok[number]])
                file.writelines(pieces)
                places[number] = [at, *(at := at + len(piece) for piece in pieces)]
        progress.update("writing the requests", at, self.num_bytes)
        for name, column in zip(_PLACES, places.T, strict=True):
            table[name] = column
        assert at == self.num_bytes, "the size was computed before"
        return table

    def _prompts(self) -> Iterator[memoryview]:
        """The words of each request; those of many short ones are made at once."""
        keys, toks = (self._frame[name].explode().to_numpy() for name in ("segment_keys", "segment_toks"))
        segments = _from_zero(self._frame["segment_keys"].list.len().to_numpy())
        tokens = _from_zero(self._frame["in_tok"].to_numpy())
        width = self._coded.width
        for start, stop in _batches(tokens):
            part = slice(segments[start], segments[stop])
            words = memoryview(self._words(keys[part], toks[part]))
            first = (tokens[start:stop] - tokens[start] + self._first[start:stop]) * width
            last = first + self._num[start:stop] * width
            for one, other in zip(first.tolist(), last.tolist(), strict=True):
                yield self._coded.first(words[one:other])

    def _words(self, keys: npt.NDArray[np.int64], toks: npt.NDArray[np.int64]) -> bytes:
        num_words = len(self._facts.vocabulary)
        made = (
            self._coded.of(prompt_words(keys[start:stop], toks[start:stop], self._seed, num_words))
            for start, stop in _batches(_from_zero(toks))
        )
        return b"".join(made)

    def _tail(self, num: int) -> bytes:
        fields = {**dict.fromkeys(self._facts.length_fields, num), **self._facts.fields}
        if self._live and self._facts.form == "ids":
            fields["return_token_ids"] = True
        return self.shape.tail(fields)

    def _size(self) -> int:
        words = int(self._num.sum()) * self._coded.width - self._frame.height * self._coded.skip
        around = self._frame.height * len(self.shape.head) + sum(map(len, self._headers))
        return words + around + sum(len(self._tails[num]) for num in self._out_tok)

    def after(self) -> npt.NDArray[np.uint32]:
        """The requests that are waited for, one request's after another's."""
        return self._frame["after"].explode().drop_nulls().to_numpy().astype(np.uint32)

    def _table(self) -> npt.NDArray[Any]:
        """All but the places."""
        frame = self._frame
        table = np.zeros(frame.height, REQUEST)
        table["start_s"] = frame["start_s"].fill_null(np.nan).to_numpy()
        table["cancel_after_tok"] = frame["cancel_after_tok"].fill_null(-1).to_numpy()
        table["history_of"] = self._history
        for name in ("group", "delay_s", "out_tok"):
            table[name] = frame[name].to_numpy()
        table["after_to"] = np.cumsum(frame["after"].list.len().to_numpy(), dtype=np.int64)
        table["after_from"][1:] = table["after_to"][:-1]
        return table
