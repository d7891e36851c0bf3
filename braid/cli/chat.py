"""``braid chat``: a conversation in the terminal, with the model in this process."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict

from rich.console import Console

from braid.cli.progress import ConsoleProgress
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.engine.llm import AsyncLLM

PROMPT = "> "


def chat(config: EngineConfig, system: str | None, params: SamplingParams) -> None:
    """Read a line, stream the answer, until ``/exit`` or the end of input."""
    console = Console(stderr=True)
    llm = AsyncLLM(**asdict(config), progress=ConsoleProgress(console))
    console.print(
        f"{llm.info.model} on {llm.info.device}, {llm.info.dtype}. /reset forgets, /exit ends.", style="dim"
    )
    try:
        with asyncio.Runner() as runner:
            _converse(llm, runner, console, _opening(system), params)
    finally:
        llm.close()


def _opening(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _converse(
    llm: AsyncLLM,
    runner: asyncio.Runner,
    console: Console,
    opening: list[dict[str, str]],
    params: SamplingParams,
) -> None:
    messages = list(opening)
    while (line := _read_line(console)) is not None:
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages = _turn(llm, runner, console, messages, line, params)


def _turn(
    llm: AsyncLLM,
    runner: asyncio.Runner,
    console: Console,
    messages: list[dict[str, str]],
    line: str,
    params: SamplingParams,
) -> list[dict[str, str]]:
    """The conversation after one more turn; unchanged when the turn failed."""
    asked = [*messages, {"role": "user", "content": line}]
    answer: list[str] = []
    try:
        runner.run(_answer(llm, asked, params, answer))
    except KeyboardInterrupt:
        console.print("\n(stopped)", style="dim")
    except InvalidParameterError as error:
        console.print(f"\n{error} (/reset forgets the conversation)", style="red", markup=False)
        return messages
    return [*asked, {"role": "assistant", "content": "".join(answer)}]


async def _answer(
    llm: AsyncLLM, messages: list[dict[str, str]], params: SamplingParams, answer: list[str]
) -> None:
    async for output in llm.chat(messages, params):
        answer.append(output.text)
        sys.stdout.write(output.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _read_line(console: Console) -> str | None:
    """The next line, stripped; None at the end. Only a terminal is shown the prompt sign."""
    try:
        line = console.input(PROMPT) if sys.stdin.isatty() else input()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line.strip() == "/exit" else line.strip()
