"""Whether a checkpoint makes embeddings, and how it wants hidden states to be pooled. No torch here."""

from __future__ import annotations

import logging

from braid.checkpoint.open import Checkpoint, read_json

logger = logging.getLogger(__name__)

POOLING_FILE = "1_Pooling/config.json"
"""Where sentence-transformers writes it."""
_FLAGS = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
_GGUF_TYPES = {1: "mean", 3: "last"}
"""llama.cpp's numbers; 0 is none."""


def stated_pooling(checkpoint: Checkpoint) -> str | None:
    """``last`` or ``mean``; None if the checkpoint says nothing, or something else (which is logged).

    Raises:
        CheckpointError: the pooling file cannot be read.
    """
    if checkpoint.gguf is not None:
        return _gguf_pooling(checkpoint)
    path = checkpoint.source.root / POOLING_FILE
    if not path.is_file():
        return None
    config = read_json(path)
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) == 1 and modes[0] in _FLAGS:
        return _FLAGS[modes[0]]
    logger.warning("no embeddings: %s asks for %s", path, ", ".join(modes) or "no pooling")
    return None


def _gguf_pooling(checkpoint: Checkpoint) -> str | None:
    assert checkpoint.gguf is not None, "not a GGUF file"
    number = checkpoint.gguf.get(f"{checkpoint.gguf.get('general.architecture')}.pooling_type", 0)
    if number in (0, *_GGUF_TYPES):
        return _GGUF_TYPES.get(number)
    logger.warning("no embeddings: the GGUF file asks for pooling type %s", number)
    return None
