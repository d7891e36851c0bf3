"""Options that say on which machine, and with which model, is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from braid.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from braid.sim.platform import Platform

ENGINE = Group("Machine and engine", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFlags:
    """Whose steps are timed."""

    machine: Annotated[
        str,
        Parameter(
            group=ENGINE,
            help="a100-80g, h100, h200, rtx4090 or a6000 (estimates from data sheets), this (what braid calibrate "
            "kept here) or a file that it wrote.",
        ),
    ]
    model: Annotated[
        str | None,
        Parameter(
            group=ENGINE,
            help="llama-3.1-8b, llama-3.1-70b, qwen3-30b-a3b, qwen2.5-7b, mixtral-8x7b or smollm2.",
            show_default="the calibrated one",
        ),
    ] = None
    dtype: Annotated[str, Parameter(group=ENGINE, help="Of a GPU's weights: bfloat16, int8 or int4.")] = (
        "bfloat16"
    )
    max_num_seqs: Annotated[
        int | None,
        Parameter(group=ENGINE, help="Requests that run at a time.", show_default="64, or measured"),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, Parameter(group=ENGINE, help="Tokens of one step.", show_default="2048, or measured")
    ] = None

    def platform(self) -> Platform:
        """
        Raises:
            InvalidParameterError: a name is not known, or no model is named for a GPU.
            CapacityError: the model does not fit.
        """
        from braid.core.env import cache_dir
        from braid.sim.gpus import GPUS
        from braid.sim.platform import measured_platform, roofline_platform

        if self.machine in GPUS:
            if self.model is None:
                raise InvalidParameterError(f"--machine {self.machine} needs a --model", param="model")
            return roofline_platform(self.machine, self.model, self.dtype)
        if self.machine == "this":
            return measured_platform(_profile(cache_dir() / "profiles", self.model), None)
        if not Path(self.machine).exists():
            return roofline_platform(self.machine, self.model or "", self.dtype)
        return measured_platform(Path(self.machine), self.model)


def _profile(folder: Path, model: str | None) -> Path:
    """The tables that were kept here, of ``model`` where there are several."""
    wanted = "" if model is None else model.replace("/", "--").lower()
    found = sorted(path for path in folder.glob("*.json") if wanted in path.name.lower())
    if len(found) == 1:
        return found[0]
    if not found:
        which = "" if model is None else f" of {model}"
        raise InvalidParameterError(
            f"no step times{which} are in {folder}; run braid calibrate first", param="machine"
        )
    raise InvalidParameterError(
        f"step times of several models are in {folder}: {', '.join(path.stem for path in found)}; say --model",
        param="model",
    )
