"""``/v1/sessions``: the programs of the own key, and what a client may ask for them between two turns."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from braid.core.errors import BraidError, InvalidParameterError
from braid.core.program import Applied, Outcome, ProgramInfo, ProgramVerb
from braid.server.errors import HttpError, json_response
from braid.server.guard.body import echo, read_json
from braid.server.pipeline import Pipeline, record_of
from braid.server.programs.registry import ProgramState

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
_MAX_PIN_BYTES = 4096
"""These requests pass the gate uncounted, so they must not be able to hold memory."""
_REFUSED = (Applied.REJECTED, Applied.IGNORED)


class PinRequest(BaseModel):
    """Body of ``pin``."""

    model_config = ConfigDict(strict=True)

    seconds: float


class SessionRoutes:
    """Everything about programs that is no turn."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._engine = pipeline.context.engine
        self._config = pipeline.context.config
        self._programs = pipeline.programs

    async def sessions(self, request: Request) -> Response:
        """``?limit=`` of them, ``?after=`` an id; the oldest first."""
        limit = _limit(request.query_params.get("limit"))
        owner = record_of(request).principal.name
        states = self._programs.of(owner)
        after = request.query_params.get("after")
        if after is not None:
            known = [state.ref.program for state in states]
            if after not in known:
                raise InvalidParameterError(f"after names no session: {echo(after)}", param="after")
            states = states[known.index(after) + 1 :]
        known_to_engine = await self._in_engine(owner)
        shown = [self._shown(state, known_to_engine.get(state.ref.program)) for state in states[:limit]]
        return json_response(
            {
                "object": "list",
                "data": shown,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
                "has_more": len(states) > limit,
            }
        )

    async def _in_engine(self, owner: str) -> dict[str, ProgramInfo]:
        """What the engine knows of an owner's latest programs; nothing while it is away."""
        try:
            return {info.program: info for info in await self._engine.programs(owner)}
        except BraidError:
            return {}

    async def close(self, request: Request) -> Response:
        """No turn follows: what is kept for the program goes now."""
        return await self._act(request, ProgramVerb.CLOSE)

    async def prefetch(self, request: Request) -> Response:
        return await self._act(request, ProgramVerb.PREFETCH)

    async def demote(self, request: Request) -> Response:
        return await self._act(request, ProgramVerb.DEMOTE)

    async def pin(self, request: Request) -> Response:
        """A lease for ``seconds``."""
        state = self._state(request)
        fields, _, _ = await read_json(request, PinRequest, self._config, most=_MAX_PIN_BYTES)
        if not fields.seconds > 0:
            raise InvalidParameterError(f"seconds must be > 0, got {echo(fields.seconds)}", param="seconds")
        seconds = min(fields.seconds, self._config.max_ttl)
        outcome = await self._engine.program(ProgramVerb.PIN, state.ref, seconds)
        if outcome.applied not in _REFUSED:
            self._programs.lease(state, seconds)
            if seconds < fields.seconds and outcome.applied is Applied.APPLIED:
                outcome = Outcome(outcome.wish, Applied.CLIPPED, "quota")
        return self._answer(request, state, outcome)

    async def _act(self, request: Request, verb: ProgramVerb) -> Response:
        state = self._state(request)
        outcome = await self._engine.program(verb, state.ref)
        if verb is ProgramVerb.CLOSE:
            state.lease_until = None
            self._programs.close(state.ref.owner, state.ref.program)
        return self._answer(request, state, outcome)

    def _state(self, request: Request) -> ProgramState:
        """The named program, if it is the asking key's.

        Raises:
            HttpError: 404, also for a program of another key: whether it exists is not told.
        """
        name = request.path_params["id"]
        state = self._programs.find(record_of(request).principal.name, name)
        if state is None:
            raise HttpError(404, f"there is no session {echo(name)}", param="id", code="unknown_program")
        return state

    def _answer(self, request: Request, state: ProgramState, outcome: Outcome) -> Response:
        record_of(request).outcomes.append(outcome)
        return json_response(
            {
                "id": state.ref.program,
                "object": "session.outcome",
                "verb": outcome.wish,
                "outcome": outcome.applied.value,
                "reason": outcome.reason,
            }
        )

    def _shown(self, state: ProgramState, info: ProgramInfo | None) -> dict[str, Any]:
        now = self._programs.now()
        prompts = state.num_prompt_tokens
        return {
            "id": state.ref.program,
            "object": "session",
            "parent_id": state.ref.parent,
            "group_id": state.ref.group,
            "source": state.ref.source,
            "turns": state.turns,
            "active_turns": state.active,
            "state": _state(state, info),
            "prompt_tokens": prompts,
            "output_tokens": state.num_output_tokens,
            "cached_tokens": state.num_cached_tokens,
            "cached_share": round(state.num_cached_tokens / prompts, 4) if prompts else 0.0,
            "age_seconds": round(now - state.first_seen, 3),
            "idle_seconds": 0.0 if state.active else round(now - state.last_seen, 3),
            "lease_seconds": _lease(state, info, now),
            "finish": None if info is None or not info.num_turns else info.finish,
            "tool": None if info is None else info.tool,
            "expected_return_seconds": self._expected(info),
            "kv": None if info is None else _where(info),
        }

    def _expected(self, info: ProgramInfo | None) -> float | None:
        """None also where it would come back to a server that has forgotten it."""
        seconds = None if info is None else info.return_s
        return None if seconds is None or seconds > self._config.program_idle_seconds else _rounded(seconds)


def _state(state: ProgramState, info: ProgramInfo | None) -> str:
    """``running``, ``waiting`` (in the engine's queue), ``children`` (its sub-agents work), ``tool`` (its client does
    what its last turn called) or ``idle``."""
    if info is not None and info.num_waiting and not info.num_running:
        return "waiting"
    if state.active:
        return "running"
    if info is None:
        return "idle"
    return "children" if info.num_working else "tool" if info.finish == "tool" else "idle"


def _lease(state: ProgramState, info: ProgramInfo | None, now: float) -> float | None:
    """Seconds left; the engine knows best, as leases may be cut or end early."""
    if info is not None and info.num_turns:
        return _rounded(info.lease_s) or None
    return None if state.lease_until is None else _rounded(max(0.0, state.lease_until - now)) or None


def _where(info: ProgramInfo) -> dict[str, Any]:
    """Where the blocks of a program's latest turn live; those of neither place would be computed anew."""
    return {
        "blocks": info.num_blocks,
        "device_blocks": info.num_device_blocks,
        "lower_blocks": info.num_lower_blocks,
        "protected": info.is_protected,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _limit(value: str | None) -> int:
    if value is None:
        return DEFAULT_LIMIT
    if not value.isdecimal() or len(value) > 9 or not 1 <= int(value) <= MAX_LIMIT:
        raise InvalidParameterError(
            f"limit must be an integer in [1, {MAX_LIMIT}], got {echo(value)}", param="limit"
        )
    return int(value)
