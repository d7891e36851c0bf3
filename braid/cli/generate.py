"""``braid generate``: continue texts in this process."""

from __future__ import annotations

import sys
from dataclasses import asdict

import msgspec

from braid.cli.progress import ConsoleProgress
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.engine.llm import LLM, RequestOutput


def generate(config: EngineConfig, prompts: list[str], params: SamplingParams, *, as_json: bool) -> None:
    """Print what the model makes of each prompt; without prompts, standard input is the prompt."""
    prompts = prompts or [_standard_input()]
    with LLM(**asdict(config), progress=ConsoleProgress()) as llm:
        outputs = llm.generate(prompts, params)
    for prompt, output in zip(prompts, outputs, strict=True):
        print(_as_json(prompt, output) if as_json else output.text)


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise InvalidParameterError("give a text with --prompt, or pipe one in", param="prompt")
    return sys.stdin.read()


def _as_json(prompt: str, output: RequestOutput) -> str:
    fields = {
        "prompt": prompt,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "num_prompt_tokens": len(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
    }
    return msgspec.json.encode(fields).decode()
