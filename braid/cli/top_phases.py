"""What ``braid top`` shows of how prefill and decode share the machine."""

from __future__ import annotations

from rich.text import Text

from braid.cli.top_data import Scrape
from braid.cli.top_parts import short


def decision(now: Scrape) -> Text | None:
    """The latest, while both phases had work: the time between tokens that was foreseen and that was aimed at, the
    tokens of a chunk and of the prompts that were to be computed. None where nothing was decided."""
    state = now.by("policy_state", "quantity")
    target = state.get("phases_target_tbt_seconds", 0.0)
    if not target:
        return None
    foreseen = state.get("phases_predicted_tbt_seconds", 0.0)
    text = Text(f" {foreseen * 1000:.0f} ms ", style="green" if foreseen <= target else "yellow")
    text.append(f"of {target * 1000:.0f}, chunks {short(state.get('phases_chunk_tokens', 0))}", style="dim")
    text.append(f" of {short(state.get('phases_prompt_tokens', 0))} ", style="dim")
    return text
