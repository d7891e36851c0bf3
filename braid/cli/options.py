"""Every option of every verb, once: its flag, its ``BRAID_*`` variable, its YAML key, its default and its help.

The spellings are vLLM's. A field's help is what ``--help`` prints; a ``None`` that is measured later says so there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from braid.core.config import (
    DEFAULT_AGENT_POLICY,
    DEFAULT_EXPERT_CACHE,
    DEFAULT_MODEL,
    DEFAULT_PHASES,
    SERVED_PHASES,
    EngineConfig,
)
from braid.core.sampling import SamplingParams
from braid.core.units import parse_bytes
from braid.policy.agents.catalog import ABLATIONS, NAMES, unknown_policy
from braid.policy.experts.catalog import NAMES as CACHES
from braid.policy.experts.catalog import unknown_cache
from braid.policy.phases.catalog import NAMES as PHASES

ENGINE = Group("Engine options", sort_key=1)
SERVER = Group("Server options", sort_key=2)
SAMPLING = Group("Sampling options", sort_key=2)
OBSERVE = Group("Observability options", sort_key=3)

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["logfmt", "json"]
Model = Annotated[
    str,
    Parameter(
        help="An alias (see `braid models`), a folder, a .gguf file or a hub id (org/name, org/name:Q4_K_M)."
    ),
]


def _bytes(_type: Any, tokens: Sequence[Token]) -> int:
    return parse_bytes(tokens[0].value)


def _text(_type: Any, tokens: Sequence[Token]) -> str:
    return tokens[0].value


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """The fields of ``EngineConfig`` but the model, which is an argument of its own."""

    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        Parameter(
            group=ENGINE, help="Number format of weights, activations and KV; auto follows the checkpoint."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(group=ENGINE, help="auto takes a GPU if torch sees one.")
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Parameter(
            group=ENGINE,
            help="Longest prompt plus output, in tokens.",
            show_default="the model's, if it fits",
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        Parameter(group=ENGINE, help="Most requests running at a time.", show_default="sized to memory"),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        Parameter(group=ENGINE, help="Token budget of one step.", show_default="sized to the machine"),
    ] = None
    block_size: Annotated[int, Parameter(group=ENGINE, help="Tokens per KV block; a power of two.")] = 16
    kv_cache_memory: Annotated[
        int | None,
        Parameter(
            group=ENGINE,
            converter=_bytes,
            metavar="SIZE",
            help="Memory for KV, such as 2GiB.",
            show_default="sized to free memory",
        ),
    ] = None
    threads: Annotated[
        int | None, Parameter(group=ENGINE, help="Compute threads.", show_default="all usable cores")
    ] = None
    seed: Annotated[int, Parameter(group=ENGINE, help="Seeds requests that bring no seed.")] = 0
    offline: Annotated[
        bool, Parameter(group=ENGINE, help="Never ask the network; use what is on disk.", negative=())
    ] = False
    pooling: Annotated[
        Literal["auto", "none", "last", "mean"],
        Parameter(
            group=ENGINE,
            help="How embeddings are made of hidden states; auto follows the checkpoint, none makes none.",
        ),
    ] = "auto"

    agent_policy: Annotated[
        str,
        Parameter(
            group=ENGINE,
            metavar="NAME",
            help=f"How agents' programs are ordered, admitted and kept: {', '.join(NAMES)}.",
        ),
    ] = DEFAULT_AGENT_POLICY
    phases: Annotated[
        str | None,
        Parameter(
            group=ENGINE,
            metavar="MODE",
            help=f"How prefill and decode share the machine: {', '.join(PHASES)}.",
            show_default=f"{SERVED_PHASES} where it is served, else {DEFAULT_PHASES}",
        ),
    ] = None
    partition: Annotated[
        Literal["auto", "serial", "cpu", "cpu-pinned", "green", "priority"],
        Parameter(
            group=ENGINE,
            help="Who divides the machine between prefill and decode; auto takes what works here.",
        ),
    ] = "auto"
    slo_ttft_ms: Annotated[
        float | None,
        Parameter(
            group=ENGINE,
            metavar="MS",
            help="Milliseconds that first tokens are to keep.",
            show_default="none",
        ),
    ] = None
    slo_tbt_ms: Annotated[
        float | None,
        Parameter(
            group=ENGINE,
            metavar="MS",
            help="Milliseconds between tokens that are to be kept.",
            show_default="none",
        ),
    ] = None
    agent_log: Annotated[
        str | None,
        Parameter(
            group=OBSERVE,
            metavar="FILE",
            help="JSON lines of every turn's blocks, for `braid sim regret`; no text, no ids.",
            show_default="none",
        ),
    ] = None

    kv_disk: Annotated[
        int | None,
        Parameter(
            group=ENGINE,
            converter=_bytes,
            metavar="SIZE",
            help="Disk for KV of programs that memory has no room for, such as 20GiB.",
            show_default="none",
        ),
    ] = None
    kv_disk_path: Annotated[
        str | None,
        Parameter(
            group=ENGINE, metavar="DIR", help="Where that file lies.", show_default="Braid's cache folder"
        ),
    ] = None
    kv_disk_keep: Annotated[
        bool,
        Parameter(group=ENGINE, help="Find the KV on disk again after a restart.", negative=()),
    ] = False
    kv_host: Annotated[
        int | None,
        Parameter(
            group=ENGINE,
            converter=_bytes,
            metavar="SIZE",
            help="Main memory for KV that a GPU has no room for.",
            show_default="none",
        ),
    ] = None

    expert_memory: Annotated[
        int | str | None,
        Parameter(
            group=ENGINE,
            converter=_text,
            metavar="SIZE",
            help="Memory for experts, the others stay in a file: such as 6GiB, 25% of all, or auto.",
            show_default="all in memory; auto for what `braid convert` made",
        ),
    ] = None
    expert_format: Annotated[
        Literal["auto", "float32", "bfloat16", "int8", "int4"],
        Parameter(
            group=ENGINE,
            help="How experts are stored and computed with; auto takes what `braid convert` made, else the dtype.",
        ),
    ] = "auto"
    expert_cache: Annotated[
        str,
        Parameter(
            group=ENGINE,
            metavar="NAME",
            help=f"Which experts stay in memory: {', '.join(CACHES)}.",
        ),
    ] = DEFAULT_EXPERT_CACHE
    expert_scope: Annotated[
        Literal["global", "layer"],
        Parameter(group=ENGINE, help="One pool of slots for the experts of all layers, or one for each."),
    ] = "global"
    expert_prefetch: Annotated[
        Literal["off", "on", "auto"],
        Parameter(group=ENGINE, help="Read experts of later layers ahead; auto does it while it pays."),
    ] = "off"
    expert_host_memory: Annotated[
        int | str | None,
        Parameter(
            group=ENGINE,
            converter=_text,
            metavar="SIZE",
            help="Main memory for experts below a GPU: such as 48GiB, 50% of all, or auto.",
            show_default="auto",
        ),
    ] = None
    expert_dispatch: Annotated[
        Literal["auto", "fetch"],
        Parameter(
            group=ENGINE,
            help="Experts that a GPU needs and has not: auto lets the CPU compute some, fetch copies them all.",
        ),
    ] = "auto"
    memory_split: Annotated[
        Literal["auto", "live", "fixed"],
        Parameter(
            group=ENGINE,
            help="Whether memory moves between experts and KV while serving; auto does it where neither has a size.",
        ),
    ] = "auto"

    def config(self, model: str, *, phases: str = DEFAULT_PHASES) -> EngineConfig:
        """Validate.

        Args:
            phases: where the user names none.

        Raises:
            InvalidParameterError: naming the field, the value and the valid range.
        """
        if self.agent_policy not in (*NAMES, *ABLATIONS):
            raise unknown_policy(self.agent_policy)
        if self.expert_cache not in CACHES:
            raise unknown_cache(self.expert_cache)
        return EngineConfig(
            model=model, **(asdict(self) | {"phases": phases if self.phases is None else self.phases})
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Where and how ``braid serve`` listens."""

    host: Annotated[str, Parameter(group=SERVER, help="Address to listen on; 0.0.0.0 is every network.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Parameter(group=SERVER, help="TCP port; 0 picks a free one.")] = 8000
    api_key: Annotated[
        tuple[str, ...],
        Parameter(
            group=SERVER,
            negative=(),
            help="Clients must send it as a bearer token or as X-Api-Key; may be repeated.",
            show_default="none: open",
        ),
    ] = ()
    api_key_file: Annotated[
        Path | None,
        Parameter(
            group=SERVER,
            help="File with one key, or name:key, per line; metrics show the names.",
            show_default="none",
        ),
    ] = None
    allow_open: Annotated[
        bool,
        Parameter(group=SERVER, help="Listen to other machines though there is no API key.", negative=()),
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        Parameter(
            group=SERVER,
            negative=(),
            help="Name that the Host header may have; may be repeated, * is any.",
            show_default="this machine's own on loopback, any elsewhere",
        ),
    ] = ()
    share_prefix_cache: Annotated[
        bool,
        Parameter(
            group=SERVER,
            help="Let API keys use each other's cached prefixes; response times then tell them apart.",
            negative=(),
        ),
    ] = False
    max_queued: Annotated[
        int,
        Parameter(
            group=SERVER, help="Most requests under way; one API key of several may have a quarter of them."
        ),
    ] = 512
    max_ttl: Annotated[
        float,
        Parameter(
            group=SERVER, help="Longest time, in seconds, that a client's wish to keep a prefix holds."
        ),
    ] = 3600.0
    served_model_name: Annotated[
        tuple[str, ...],
        Parameter(
            group=SERVER,
            negative=(),
            help="Name that clients may use; may be repeated.",
            show_default="the model's name",
        ),
    ] = ()
    chat_template: Annotated[
        Path | None,
        Parameter(group=SERVER, help="File with a Jinja chat template.", show_default="the model's own"),
    ] = None
    tool_call_parser: Annotated[
        str | None,
        Parameter(
            group=SERVER,
            help="How the model writes tool calls: hermes, llama3_json, mistral, ...; none for off.",
            show_default="seen in the model",
        ),
    ] = None
    shutdown_timeout: Annotated[
        float, Parameter(group=SERVER, help="Seconds that running requests get to finish after SIGTERM.")
    ] = 30.0
    log_level: Annotated[LogLevel, Parameter(group=SERVER, help="Least severe log line shown.")] = "info"
    config: Annotated[
        Path | None,
        Parameter(group=SERVER, help="YAML file; its keys are option names.", show_default="none"),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ObserveOptions:
    """What ``braid serve`` tells of its requests, and where."""

    log_format: Annotated[
        LogFormat, Parameter(group=OBSERVE, help="How log lines are written; none has text from a prompt.")
    ] = "logfmt"
    request_log: Annotated[
        Path | None,
        Parameter(
            group=OBSERVE,
            help="JSON lines for the workload lab: times, lengths, hashes; no text.",
            show_default="none",
        ),
    ] = None
    request_log_bytes: Annotated[
        int,
        Parameter(
            group=OBSERVE,
            converter=_bytes,
            metavar="SIZE",
            help="A longer request log becomes FILE.1, and a new one begins.",
            show_default="256MiB",
        ),
    ] = 256 << 20
    otlp_endpoint: Annotated[
        str | None,
        Parameter(
            group=OBSERVE,
            help="OpenTelemetry collector (OTLP over HTTP), such as http://localhost:4318.",
            show_default="none: nothing is sent",
        ),
    ] = None
    otel_legacy_names: Annotated[
        bool,
        Parameter(group=OBSERVE, help="Spans name token counts the older way as well.", negative=()),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """The part of ``SamplingParams`` that is useful on a command line."""

    max_tokens: Annotated[int, Parameter(group=SAMPLING, help="Most tokens to generate.")] = 256
    temperature: Annotated[float, Parameter(group=SAMPLING, help="0 always takes the likeliest token.")] = 0.0
    top_p: Annotated[float, Parameter(group=SAMPLING, help="Sample from this probability mass.")] = 1.0
    top_k: Annotated[int, Parameter(group=SAMPLING, help="Sample from the k likeliest; 0 is all.")] = 0
    repetition_penalty: Annotated[float, Parameter(group=SAMPLING, help="Above 1 discourages repeats.")] = 1.0

    def params(self) -> SamplingParams:
        """Validate.

        Raises:
            InvalidParameterError: naming the field, the value and the valid range.
        """
        return SamplingParams(**{field.name: getattr(self, field.name) for field in fields(self)})


__all__ = ["DEFAULT_MODEL", "EngineOptions", "Model", "ObserveOptions", "SamplingOptions", "ServerOptions"]
