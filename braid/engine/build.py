"""From a configuration to an engine that is ready to serve."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import torch

import braid.kernels
from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.pooling import stated_pooling
from braid.checkpoint.progress import NullProgress, Progress
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.faults import Faults
from braid.core.request import Slo
from braid.core.spec import ModelSpec
from braid.device.machine import probe, usable_cores
from braid.engine.agent_log import AgentLog
from braid.engine.core import EngineCore
from braid.engine.division_log import DivisionLog
from braid.engine.expert_tiers import check_host
from braid.engine.experts import Wanted, hold_experts, wanted_experts
from braid.engine.grammar import Grammars
from braid.engine.guidance import Vocabulary
from braid.engine.lower import check_tiers, open_tiers
from braid.engine.memory_split import Budget, MemorySplit, budget_of
from braid.engine.protocol import EngineInfo
from braid.models.loading import load_weights
from braid.models.registry import build_model
from braid.models.spec import model_spec
from braid.policy.agents.catalog import agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.policy import AgentPolicy
from braid.policy.agents.wishes import acted_on
from braid.policy.fit import MemoryPlan, fit
from braid.policy.phases.catalog import phases_policy
from braid.policy.phases.curves import CORES, SMS
from braid.runner.kv_store import KVStore
from braid.runner.partition import Partition, open_partition
from braid.runner.runner import Runner
from braid.sched.config import Policies
from braid.sched.scheduler import Scheduler, SchedulerConfig

logger = logging.getLogger(__name__)

AUTO_PHASES = "auto"
"""The mode that does without lanes where there cannot be any; the others that want them refuse."""


@dataclass(frozen=True, slots=True)
class Built:
    """An engine that has not been started yet, and how its memory was reckoned."""

    core: EngineCore
    plan: MemoryPlan
    limits: SchedulerConfig
    reckoning: list[str]


def build_engine(
    config: EngineConfig,
    *,
    eos_token_ids: frozenset[int],
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    faults: Faults | None = None,
) -> Built:
    """Measure the machine, size the memory, load the weights and assemble the engine.

    Args:
        checkpoint: given where the caller has opened it already; else ``config.model`` is resolved.
        faults: what tests let go wrong.

    Raises:
        BraidError: the model cannot be found, read or fitted, or the device is not there.
    """
    with ExitStack() as undo:
        built = _build(config, eos_token_ids, checkpoint, progress, faults, undo)
        undo.pop_all()
        return built


def _build(
    config: EngineConfig,
    eos_token_ids: frozenset[int],
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    faults: Faults | None,
    undo: ExitStack,
) -> Built:
    """``undo`` is for what must be closed if anything after it fails."""
    begin = time.monotonic()
    progress, faults = progress or NullProgress(), faults or Faults()
    if checkpoint is None:
        checkpoint = open_checkpoint(resolve(config.model, progress=progress, offline=config.offline))
    device = pick_device(config.device)
    check_tiers(config, device)
    check_host(config, device)
    torch.set_num_threads(config.threads or usable_cores())
    dtype = pick_dtype(config.dtype, checkpoint)
    spec = model_spec(config.model, checkpoint.config)
    wanted = wanted_experts(config, checkpoint, dtype)
    plan = plan_memory(config, spec, dtype, device, wanted)
    budget = _budget(config, plan, wanted, device)
    limits = _scheduler_config(config, plan, budget)
    # What is unknown, or does not work here, is an error before anything is loaded.
    is_split = make_policies(config, has_lower=False, device=device).phases.is_split
    partition = pick_partition(config, device, needs_lanes=is_split)
    limits = replace(
        limits,
        num_units=partition.num_units,
        can_reshare=partition.can_reshare,
        num_layers=spec.num_layers,
    )
    model = build_model(checkpoint.config, dtype=dtype, device=device)
    experts = hold_experts(
        config, wanted, plan.num_expert_slots, checkpoint, model, progress=progress, faults=faults
    )
    undo.callback(experts.close)
    weights = iter_weights(checkpoint, dtype, progress=progress, skip=experts.skip)
    load_weights(model, faults.over("load.weights", weights))
    model.eval()
    kv = faults.around("load.kv", KVStore)(
        model.kv_shapes,
        num_blocks=limits.block_bounds[1],
        block_size=config.block_size,
        dtype=dtype,
        device=device,
    )
    lower = open_tiers(config, model, kv, {**checkpoint.config, **experts.marks}, faults=faults)
    is_split = is_split and partition.has_lanes
    policies = make_policies(config, has_lower=bool(lower.sizes), device=device, has_lanes=is_split)
    if is_split and device.type == "cuda":
        # Of full length now: one that grew later would be freed while the other lane's stream still reads it.
        model.turns(torch.zeros(1, dtype=torch.int64, device=device), plan.max_model_len)
    runner = Runner(
        model, kv, device=device, faults=faults, tiers=lower.lane, is_split=is_split, partition=partition
    )
    limits = replace(
        limits,
        num_host_blocks=lower.sizes.get("host", 0),
        num_disk_blocks=lower.sizes.get("disk", 0),
    )
    log = open_agent_log(config, limits, policies)
    scheduler = Scheduler(
        limits, policies, faults=faults, observer=log, kept=lower.kept, decided=DivisionLog(log)
    )
    pooling = pick_pooling(config.pooling, checkpoint)
    info = replace(
        _describe(config, spec, plan, dtype, device, pooling, policies.agents),
        phases=policies.phases.name,
        partition=partition.name,
        experts=experts.described,
    )
    split = None
    if budget is not None and experts.store is not None and policies.costs is not None:
        budget = replace(budget, most_slots=experts.store.most_slots)
        split = MemorySplit(budget, scheduler, kv, experts.store, policies.costs)
    reckoning = [
        *plan.lines(),
        *experts.lines(),
        *([] if split is None else [split.budget.line()]),
        *lower.lines(config.block_size, kv.num_bytes // kv.num_blocks),
        f"agent policy: {policies.agents.name}; phases: {policies.phases.name}",
        *partition.lines(),
        *runner.granted,
        f"ready in {time.monotonic() - begin:.1f} s",
    ]
    grammars = Grammars(lambda: read_vocabulary(checkpoint, spec.vocab_size, eos_token_ids), faults=faults)
    core = EngineCore(
        scheduler,
        runner,
        info,
        eos_token_ids=eos_token_ids,
        seed=config.seed,
        grammars=grammars,
        agent_log=log,
        experts=experts.store,
        split=split,
        faults=faults,
    )
    return Built(core, plan, limits, reckoning)


def pick_partition(config: EngineConfig, device: torch.device, *, needs_lanes: bool) -> Partition:
    """What divides the machine between lanes.

    Raises:
        InvalidParameterError: it was named and does not work here, or phases were named that need lanes and there
            cannot be any.
    """
    threads = torch.get_num_threads()
    partition = open_partition(config.partition, device, threads=threads, needs_lanes=needs_lanes)
    if needs_lanes and not partition.has_lanes and config.phases != AUTO_PHASES:
        raise InvalidParameterError(
            f"phases {config.phases!r} needs a lane for each phase, but there is one: {partition.lines()[0]}; "
            "use --phases mixed, or another partition",
            param="phases",
        )
    return partition


def make_policies(
    config: EngineConfig, *, has_lower: bool, device: torch.device, has_lanes: bool = True
) -> Policies:
    """The policies that the configuration names, and the costs that they learn.

    Args:
        has_lower: whether there is a tier below the device.
        device: what a part of it costs, before that is measured, follows from its kind.
        has_lanes: whether each phase can have one.

    Raises:
        InvalidParameterError: there is no policy of that name.
    """
    costs = LearntCosts(has_lower=has_lower)
    wishes = (inf if limit is None else limit / 1000 for limit in (config.slo_ttft_ms, config.slo_tbt_ms))
    curves = SMS if device.type == "cuda" else CORES
    phases = phases_policy(config.phases, Slo(*wishes), curves, has_lanes=has_lanes)
    return Policies(agents=agent_policy(config.agent_policy, costs), phases=phases, costs=costs)


def open_agent_log(config: EngineConfig, limits: SchedulerConfig, policies: Policies) -> AgentLog | None:
    """The log of turns, if one is wanted.

    Raises:
        BraidError: its file cannot be written.
    """
    if config.agent_log is None:
        return None
    return AgentLog(
        Path(config.agent_log),
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        policy=policies.agents.name,
    )


def read_vocabulary(checkpoint: Checkpoint, vocab_size: int, eos_token_ids: frozenset[int]) -> Vocabulary:
    """What grammars need of the tokenizer; ids of the model that it does not know stand for nothing."""
    from braid.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    return Vocabulary(
        tokens=[tokenizer.token_bytes(id) for id in range(vocab_size)],
        special=frozenset(id for id in tokenizer.special_token_ids if id < vocab_size),
        end=frozenset(id for id in eos_token_ids if id < vocab_size),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False, parse_special=False),
    )


def pick_device(wanted: str) -> torch.device:
    """``auto`` takes a GPU if torch sees one; a GPU asked for and not there is an error."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InvalidParameterError(
            "device is 'cuda', but torch sees no NVIDIA GPU here; use auto or cpu", param="device"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def pick_dtype(wanted: str, checkpoint: Checkpoint) -> torch.dtype:
    """``auto`` keeps float32 checkpoints in float32; everything else, half and quantised, runs in bfloat16."""
    if wanted == "auto":
        stored = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
        wanted = "float32" if stored == "float32" else "bfloat16"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wanted]


def pick_pooling(wanted: str, checkpoint: Checkpoint) -> str | None:
    """How embeddings are made: ``last``, ``mean``, or None for not at all."""
    if wanted == "auto":
        return stated_pooling(checkpoint)
    return None if wanted == "none" else wanted


def plan_memory(
    config: EngineConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    experts: Wanted | None = None,
) -> MemoryPlan:
    """Reckon KV blocks and batch sizes from what the machine has now.

    Raises:
        CapacityError: with the numbers, when it cannot fit.
    """
    name = str(dtype).removeprefix("torch.")
    return fit(
        spec,
        probe(gpu=device.type == "cuda"),
        dtype=name,
        kv_dtype=name,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_bytes=config.kv_cache_memory,
        experts=None if experts is None else experts.demand,
    )


def _budget(
    config: EngineConfig, plan: MemoryPlan, wanted: Wanted | None, device: torch.device
) -> Budget | None:
    is_cpu = device.type == "cpu"
    if wanted is None:
        return budget_of(config, plan, 0, 0, 0, is_cpu=is_cpu)
    shape = wanted.demand.shape
    return budget_of(config, plan, wanted.demand.slot_bytes, shape.cycle, shape.total, is_cpu=is_cpu)


def _scheduler_config(config: EngineConfig, plan: MemoryPlan, budget: Budget | None) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=plan.num_blocks,
        least_blocks=0 if budget is None else budget.least_blocks,
        most_blocks=0 if budget is None else budget.most_blocks,
        block_size=config.block_size,
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        num_units=torch.get_num_threads(),
    )


def _describe(
    config: EngineConfig,
    spec: ModelSpec,
    plan: MemoryPlan,
    dtype: torch.dtype,
    device: torch.device,
    pooling: str | None,
    agents: AgentPolicy,
) -> EngineInfo:
    return EngineInfo(
        model=config.model,
        architecture=spec.architecture,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        max_model_len=plan.max_model_len,
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        vocab_size=spec.vocab_size,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        block_bytes=config.block_size * plan.kv_bytes_per_token,
        kernels=braid.kernels.describe(),
        torch_version=str(torch.__version__),
        hidden_size=spec.hidden_size,
        pooling=pooling,
        agent_policy=agents.name,
        acts_on=acted_on(agents),
    )
