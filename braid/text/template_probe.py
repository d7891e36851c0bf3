"""Renders a chat template once in a process of its own, with little memory and time, before it is trusted with more."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import psutil

from braid.core.errors import CheckpointError, InvalidParameterError

MEMORY_BYTES = 2 << 30
SECONDS = 20
_LOOK_SECONDS = 0.01
_BEYOND_MEMORY = f"cannot render a short conversation within {MEMORY_BYTES >> 20} MiB and {SECONDS} s"
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
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(data.encode())
        given.seek(0)
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=given, stdout=subprocess.DEVNULL, stderr=errors
        ) as child:
            _watch(child)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
    if child.returncode != 0:
        raise CheckpointError(f"the chat template {_BEYOND_MEMORY}{f': {said}' if said else ''}")


def _watch(child: subprocess.Popen[bytes]) -> None:
    """Until it ends. Its own limit of memory is not kept on every system, so what it holds is looked at from here, too.

    Raises:
        CheckpointError: it takes too much of either; it is dead then.
    """
    process = psutil.Process(child.pid)
    deadline = time.monotonic() + 2 * SECONDS
    while child.poll() is None:
        try:
            if process.memory_info().rss > MEMORY_BYTES:
                raise CheckpointError(f"the chat template {_BEYOND_MEMORY}")
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"the chat template takes more than {SECONDS} s for a short conversation"
                )
        except psutil.NoSuchProcess:
            continue
        except CheckpointError:
            child.kill()
            raise
        time.sleep(_LOOK_SECONDS)


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
