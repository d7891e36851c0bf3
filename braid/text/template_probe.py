"""Renders a chat template once in a process of its own, with little memory and time, before it is trusted with more."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from braid.core.errors import CheckpointError, InvalidParameterError

MEMORY_BYTES = 2 << 30
SECONDS = 20
_CHILD = "from braid.text.template_probe import main; main()"
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
_CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?", "reasoning_content": "Hm."},
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "nothing"},
    ],
]


def probe(source: str, *, bos_token: str | None, eos_token: str | None) -> None:
    """Whether a template keeps within bounds on small conversations.

    Raises:
        CheckpointError: it does not.
    """
    data = json.dumps({"source": source, "bos_token": bos_token, "eos_token": eos_token})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=data.encode(),
            capture_output=True,
            timeout=2 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"the chat template takes more than {SECONDS} s for a short conversation"
        ) from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise CheckpointError(
            f"the chat template cannot render a short conversation within {MEMORY_BYTES >> 20} MiB and {SECONDS} s"
            + (f": {last}" if last else "")
        )


def main() -> None:
    """In the child: what a template refuses or cannot render is no harm, and is told on the first request."""
    import resource

    from braid.text.template import ChatTemplate

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = json.load(sys.stdin)
    template = ChatTemplate(data["source"], bos_token=data["bos_token"], eos_token=data["eos_token"])
    for messages in _CONVERSATIONS:
        for tools in (None, [_TOOL]):
            try:
                template.render(messages, tools=tools)
            except InvalidParameterError:
                continue
