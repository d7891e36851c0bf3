"""The profile: everything a fit found, as one versioned JSON file that generation reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from braid.core.errors import BraidError
from braid.lab.compare import Row
from braid.lab.fit.arrivals import FittedArrivals
from braid.lab.fit.clients import Clients, clients_of
from braid.lab.fit.lengths import LengthLaw, Table
from braid.lab.fit.outcomes import Outcomes
from braid.lab.fit.programs import ProgramLaws
from braid.lab.fit.reuse import Reuse
from braid.lab.progress import Progress
from braid.lab.readers.servegen import is_profile, read_profile

VERSION = 2


class ProfileError(BraidError, ValueError):
    """A file is no profile, or one of another version; or a profile lacks what was asked of it."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of one model and kind: the first prompts of programs (or all prompts), and outputs by prompt.

    ``cached`` is the share of a first prompt that was seen before, by its length; None where the source does not say.
    """

    model: str | None
    kind: str | None
    share: float
    num: int
    input: Table | None
    output: Table | None
    cached: Table | None = None
    input_laws: tuple[LengthLaw, ...] = ()
    output_laws: tuple[LengthLaw, ...] = ()


class SubPrograms(msgspec.Struct, frozen=True, kw_only=True):
    """Programs that others start while they run.

    Args:
        mean: sub-programs per program; how many each course started is kept with it.
        place: after which share of its turns a program starts one; even where the source does not say.
        below: sub-programs of sub-programs.
    """

    mean: float
    place: Table
    mix: tuple[Lengths, ...]
    programs: ProgramLaws
    below: SubPrograms | None = None

    @property
    def requests_per_start(self) -> float:
        """Of a sub-program, with all below it."""
        return self.programs.mean_turns + (
            self.below.mean * self.below.requests_per_start if self.below else 0.0
        )


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Independent requests, or programs (``programs`` is set and ``arrivals`` are their starts).

    ``reuse`` is how independent requests share prefixes, where the source has block ids.
    """

    num: int
    arrivals: FittedArrivals | None
    mix: tuple[Lengths, ...]
    outcomes: Outcomes
    programs: ProgramLaws | None = None
    below: SubPrograms | None = None
    reuse: Reuse | None = None

    @property
    def requests_per_start(self) -> float:
        below = self.below.mean * self.below.requests_per_start if self.below else 0.0
        return (self.programs.mean_turns if self.programs else 1.0) + below


def mixes(stream: Stream) -> tuple[Lengths, ...]:
    """The mixes of all levels of programs, the top one first."""
    found, below = list(stream.mix), stream.below
    while below is not None:
        found += below.mix
        below = below.below
    return tuple(found)


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace was found to be.

    Args:
        data_sha256: of the file that was fitted.
        t_quantum_s: of the source's clock; generated times lie anywhere between its ticks.
        held_out: how generated traces met data that the fit did not see, where there was some: rows of ``compare`` per
            kind of arrivals.
        clients: traffic told client by client, instead of by streams.
    """

    version: int
    source: str
    data_sha256: str
    span_s: float
    licence: str
    citation: str
    notes: tuple[str, ...]
    requests: Stream | None = None
    programs: Stream | None = None
    t_quantum_s: float = 0.0
    clients: Clients | None = None
    held_out: dict[str, tuple[Row, ...]] = {}

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(stream for stream in (self.requests, self.programs) if stream is not None)

    @property
    def rate(self) -> float | None:
        """Requests per second of everything together; None where no stream has a law of arrivals."""
        rates = [
            stream.arrivals.rate * stream.requests_per_start for stream in self.streams if stream.arrivals
        ]
        rates += [self.clients.rate] if self.clients else []
        return sum(rates) if rates else None


def save_profile(profile: Profile, path: Path) -> None:
    """Write JSON.

    Raises:
        ProfileError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(profile, enc_hook=_plain), indent=1) + b"\n")
    except OSError as error:
        raise ProfileError(f"cannot write {path}: {error.strerror}") from None


def _plain(value: object) -> object:
    """numpy's scalars as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a profile")


def servegen_profile(folder: Path, progress: Progress | None = None) -> Profile:
    """A folder of ServeGen's clients as a profile.

    Raises:
        TraceError: no client file, or no usable window.
        ProfileError: no client is ever busy.
    """
    source = read_profile(folder, progress)
    clients = clients_of(source)
    if not clients.rate:
        raise ProfileError(f"{folder}: every client is idle in every window")
    bare = sum(not client.periods for client in clients.clients)
    notes = [
        f"{len(clients.clients)} clients, each with its own rate, gaps and lengths.",
        "Gap laws are scaled to the stated rates.",
        "Prompt and output lengths are independent in the source, and reasoning is not told apart.",
        *(f"{finding.name}: {finding.text}" for finding in source.findings),
    ]
    if bare:
        notes.append(f"{bare} clients have no lengths of their own: they get those of all together.")
    return Profile(
        version=VERSION,
        source=folder.name,
        data_sha256=source.sha256,
        span_s=clients.span_s,
        licence=source.licence,
        citation=source.citation,
        notes=tuple(notes),
        clients=clients,
    )


def load_profile(path: Path) -> Profile:
    """Read what ``save_profile`` wrote, or a folder of ServeGen's clients.

    Raises:
        ProfileError: no such file, not JSON, not a profile, another version.
        TraceError: see ``servegen_profile``.
    """
    if path.is_dir() and is_profile(path):
        return servegen_profile(path)
    try:
        raw = path.read_bytes()
        head = msgspec.json.decode(raw)
        version = head.get("version") if isinstance(head, dict) else None
        if version != VERSION:
            raise ProfileError(f"{path}: is no profile of version {VERSION} (it says {version!r})")
        return msgspec.json.decode(raw, type=Profile)
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{path}: is no profile: {error}") from None
