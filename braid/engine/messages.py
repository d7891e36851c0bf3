"""What the HTTP process and the engine process say to each other: msgpack through msgspec, never pickle."""

from __future__ import annotations

import msgspec

from braid.core.config import EngineConfig
from braid.core.errors import (
    BraidError,
    CapacityError,
    CheckpointError,
    EngineDeadError,
    InvalidParameterError,
    ModelNotFoundError,
    OverloadedError,
)
from braid.core.faults import Fault
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta
from braid.engine.heartbeat import Pulse
from braid.engine.protocol import EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish


class Start(msgspec.Struct, tag=True):
    """First message to a fresh engine process, on its standard input. ``faults`` are what tests let go wrong in it."""

    config: EngineConfig
    eos_token_ids: frozenset[int]
    to_engine: str
    from_engine: str
    log_level: str = "info"
    faults: tuple[Fault, ...] = ()


class Generate(msgspec.Struct, tag=True):
    request: GenerateRequest


class Abort(msgspec.Struct, tag=True):
    request_id: str


class GetStats(msgspec.Struct, tag=True):
    ticket: int


class Ping(msgspec.Struct, tag=True):
    """Are you alive?"""


class ActOnProgram(msgspec.Struct, tag=True):
    ticket: int
    verb: ProgramVerb
    program: ProgramRef
    seconds: float | None = None


class TellFinish(msgspec.Struct, tag=True):
    """How a program's latest turn has ended; not answered."""

    program: ProgramRef
    finish: Finish
    tool: str | None = None


class GetPrograms(msgspec.Struct, tag=True):
    ticket: int
    owner: str | None
    limit: int


class Stop(msgspec.Struct, tag=True):
    pass


class Progress(msgspec.Struct, tag=True):
    """Loading goes on: ``done`` of ``total`` bytes of ``what``."""

    what: str
    done: int
    total: int


class Ready(msgspec.Struct, tag=True):
    info: EngineInfo
    reckoning: list[str]


class Deltas(msgspec.Struct, tag=True):
    deltas: list[Delta]


class Refused(msgspec.Struct, tag=True):
    """A request that was not admitted, or, with no ``request_id``, an engine that cannot start."""

    request_id: str | None
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float = 1.0


class Stats(msgspec.Struct, tag=True):
    ticket: int
    stats: EngineStats


class Pong(msgspec.Struct, tag=True):
    pulse: Pulse


class Failed(msgspec.Struct, tag=True):
    """A question that went wrong."""

    ticket: int
    message: str


class ActedOnProgram(msgspec.Struct, tag=True):
    ticket: int
    outcome: Outcome


class ProgramList(msgspec.Struct, tag=True):
    ticket: int
    programs: list[ProgramInfo]


ToEngine = Generate | Abort | GetStats | Ping | ActOnProgram | TellFinish | GetPrograms | Stop
FromEngine = Progress | Ready | Deltas | Refused | Stats | Pong | Failed | ActedOnProgram | ProgramList

_PLAIN_ERRORS: dict[str, type[BraidError]] = {
    cls.__name__: cls for cls in (CapacityError, CheckpointError, EngineDeadError, ModelNotFoundError)
}


def refusal(request_id: str | None, error: BraidError) -> Refused:
    """An error as a message."""
    return Refused(
        request_id,
        type(error).__name__,
        str(error),
        getattr(error, "param", None),
        getattr(error, "code", None),
        getattr(error, "retry_after", 1.0),
    )


def as_error(message: Refused) -> BraidError:
    """The error that ``refusal`` packed."""
    if message.kind == InvalidParameterError.__name__:
        return InvalidParameterError(message.message, param=message.param, code=message.code)
    if message.kind == OverloadedError.__name__:
        return OverloadedError(message.message, retry_after=message.retry_after)
    return _PLAIN_ERRORS.get(message.kind, BraidError)(message.message)
