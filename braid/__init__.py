"""Braid serves large language models to many agents at once on the machine you have.

``LLM``, ``AsyncLLM`` and ``SamplingParams`` are the Python API; they are loaded on first use, so that importing the
package alone costs nothing and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braid.core.sampling import SamplingParams
    from braid.engine.llm import LLM, AsyncLLM

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("LLM", "AsyncLLM"):
        from braid.engine import llm

        return getattr(llm, name)
    if name == "SamplingParams":
        from braid.core.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'braid' has no attribute {name!r}")
