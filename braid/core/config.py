"""What a user may decide about an engine. What is left as None is measured or taken from the model."""

from __future__ import annotations

from dataclasses import dataclass

from braid.core.errors import InvalidParameterError
from braid.core.experts import FORMATS
from braid.core.units import parse_amount

DTYPES = ("auto", "bfloat16", "float32")
DEVICES = ("auto", "cpu", "cuda")
POOLINGS = ("auto", "none", "last", "mean")
DEFAULT_MODEL = "smollm2"
DEFAULT_AGENT_POLICY = "braid"
DEFAULT_PHASES = "mixed"
"""Most work per second, where somebody waits for all of it."""
SERVED_PHASES = "auto"
"""Where people and agents wait for each token."""
PARTITIONS = ("auto", "serial", "cpu", "cpu-pinned", "green", "priority")
MAX_BLOCK_SIZE = 256
EXPERT_FORMATS = ("auto", *FORMATS)
EXPERT_SCOPES = ("global", "layer")
EXPERT_PREFETCH = ("off", "on", "auto")
EXPERT_DISPATCH = ("auto", "fetch")
MEMORY_SPLITS = ("auto", "live", "fixed")
DEFAULT_EXPERT_CACHE = "mrs"


def _require(ok: bool, param: str, value: object, valid: str) -> None:
    if not ok:
        raise InvalidParameterError(f"{param} must be {valid}, got {value!r}", param=param)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Which model to serve, and how much of the machine it may use.

    Args:
        model: an alias, a folder, a ``.gguf`` file or a hub id (``org/name``, ``org/name:Q4_K_M``,
            ``org/name@revision``).
        dtype: number format of weights, activations and KV: ``auto`` (the checkpoint's, where the machine is
            fast in it), ``bfloat16`` or ``float32``.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        max_model_len: longest prompt plus output, in tokens; None takes the model's, cut to what memory
            can hold.
        max_num_seqs: most requests that run at the same time; None sizes it from the machine.
        max_num_batched_tokens: token budget of one step; None sizes it from the machine.
        block_size: tokens per KV block; a power of two.
        kv_cache_memory: bytes for KV blocks; None sizes it from free memory.
        threads: compute threads; None uses every core this process may run on.
        seed: seeds the random stream of requests that bring none.
        offline: never ask the network, use what is on disk.
        pooling: how embeddings are made of the prompt's hidden states: ``last``, ``mean``, ``none`` (there are no
            embeddings) or ``auto`` (as the checkpoint says; none if it says nothing).
        agent_policy: how agents' programs are ordered, admitted and kept; see ``braid.policy.agents.catalog``.
        phases: how prefill and decode share the machine; see ``braid.policy.phases.catalog``.
        partition: who gives each lane its share: ``serial`` (there is one lane), ``cpu`` (teams of threads),
            ``cpu-pinned`` (on cores of their own), ``green`` (CUDA green contexts, disjoint SMs), ``priority`` (CUDA
            streams, no isolation) or ``auto`` (what works here and isolates lanes).
        slo_ttft_ms, slo_tbt_ms: milliseconds until a first token, and between two tokens, that requests are to keep
            which wish nothing of their own; None for no limit.
        agent_log: file to which every turn's start and stop are appended, one JSON line each, without text or ids.

        kv_disk: bytes on disk for the KV of programs that the device has no room for; None for none.
        kv_disk_path: folder of that file; None takes ``kv`` in Braid's cache folder.
        kv_disk_keep: the file stays for the next engine with the same model; else it goes with this one.
        kv_host: the same in main memory, below a GPU.

        expert_memory: what experts may take of memory, the others stay in a file: bytes, a size (``6GiB``), a share of
            all of them (``25%``) or ``auto`` (what the machine leaves). None keeps all in memory as the checkpoint has
            them, unless another of these options is given or the model is a folder of ``braid convert``.
        expert_format: how experts are stored and computed with: ``auto`` (as the folder of ``braid convert`` has
            them, else ``dtype``), ``float32``, ``bfloat16``, ``int8`` or ``int4``.
        expert_cache: which experts stay in memory; see ``braid.policy.experts.catalog``.
        expert_scope: ``global`` (one pool of slots for all layers) or ``layer`` (each has its own).
        expert_prefetch: experts of later layers are read ahead: ``off``, ``on`` or ``auto`` (while it pays).
        expert_host_memory: the same as ``expert_memory`` for main memory below a GPU; None is ``auto``.
        expert_dispatch: what happens to experts that a GPU needs and has not: ``auto`` (the CPU computes some while
            others are fetched, as is planned to be done first) or ``fetch`` (all are fetched).
        memory_split: whether memory moves between experts and KV while serving: ``live``, ``fixed`` or ``auto`` (where
            neither was given a size, on a CPU).

    Raises:
        InvalidParameterError: naming the field, the value and the valid range.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    kv_cache_memory: int | None = None
    threads: int | None = None
    seed: int = 0
    offline: bool = False
    pooling: str = "auto"
    agent_policy: str = DEFAULT_AGENT_POLICY
    phases: str = DEFAULT_PHASES
    partition: str = "auto"
    slo_ttft_ms: float | None = None
    slo_tbt_ms: float | None = None
    agent_log: str | None = None
    kv_disk: int | None = None
    kv_disk_path: str | None = None
    kv_disk_keep: bool = False
    kv_host: int | None = None
    expert_memory: int | str | None = None
    expert_format: str = "auto"
    expert_cache: str = DEFAULT_EXPERT_CACHE
    expert_scope: str = "global"
    expert_prefetch: str = "off"
    expert_host_memory: int | str | None = None
    expert_dispatch: str = "auto"
    memory_split: str = "auto"

    def __post_init__(self) -> None:
        model_ok = isinstance(self.model, str) and self.model.strip() != ""
        _require(model_ok, "model", self.model, "a non-empty model name")
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        _require(self.device in DEVICES, "device", self.device, f"one of {', '.join(DEVICES)}")
        _require(self.pooling in POOLINGS, "pooling", self.pooling, f"one of {', '.join(POOLINGS)}")
        named = isinstance(self.agent_policy, str) and self.agent_policy.strip() != ""
        _require(named, "agent_policy", self.agent_policy, "the name of a policy")
        named = isinstance(self.phases, str) and self.phases.strip() != ""
        _require(named, "phases", self.phases, "the name of a mode")
        valid = f"one of {', '.join(PARTITIONS)}"
        _require(self.partition in PARTITIONS, "partition", self.partition, valid)
        for name in ("slo_ttft_ms", "slo_tbt_ms"):
            limit = getattr(self, name)
            _require(limit is None or limit > 0, name, limit, "above 0 or None")
        self._check_experts()
        self._check_sizes()

    def _check_experts(self) -> None:
        for name in ("expert_memory", "expert_host_memory"):
            if (asked := getattr(self, name)) is not None:
                parse_amount(asked, name)
        named = isinstance(self.expert_cache, str) and self.expert_cache.strip() != ""
        _require(named, "expert_cache", self.expert_cache, "the name of a policy")
        for name, choices in (
            ("expert_format", EXPERT_FORMATS),
            ("expert_scope", EXPERT_SCOPES),
            ("expert_prefetch", EXPERT_PREFETCH),
            ("expert_dispatch", EXPERT_DISPATCH),
            ("memory_split", MEMORY_SPLITS),
        ):
            value = getattr(self, name)
            _require(value in choices, name, value, f"one of {', '.join(choices)}")

    def _check_sizes(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "kv_cache_memory",
            "threads",
            "kv_disk",
            "kv_host",
        ):
            value = getattr(self, name)
            _require(value is None or (_whole(value) and value >= 1), name, value, "an integer >= 1 or None")
        size = self.block_size
        size_ok = _whole(size) and 1 <= size <= MAX_BLOCK_SIZE and size & (size - 1) == 0
        _require(size_ok, "block_size", size, f"a power of two in [1, {MAX_BLOCK_SIZE}]")
        for name in ("kv_disk_path", "kv_disk_keep"):
            unused = self.kv_disk is None and getattr(self, name)
            _require(not unused, name, getattr(self, name), "left out where there is no kv_disk")
        seed_ok = _whole(self.seed) and 0 <= self.seed < 2**63
        _require(seed_ok, "seed", self.seed, "an integer in [0, 2**63)")
        tokens, seqs = self.max_num_batched_tokens, self.max_num_seqs
        if tokens is not None and seqs is not None:
            valid = f"at least max_num_seqs ({seqs}): every running request needs one token per step"
            _require(tokens >= seqs, "max_num_batched_tokens", tokens, valid)
