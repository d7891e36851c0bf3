"""A server whose model follows a script in the user's message: real HTTP, real tokenizer and template, no weights.

A script is a line of steps, ``[[call NAME {"json": "arguments"}]]`` and ``[[say TEXT]]``. The model takes the step
whose number is the count of tool results behind the script, so that a client's loop of calls and results runs to
its end.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.program import Applied, Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta, FinishReason
from braid.engine.protocol import MAX_LISTED, EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish
from braid.server.config import ServerConfig, ServerContext
from braid.server.serve import bind, run
from braid.text.detect import detect_format
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer, load_tokenizer

STEP = re.compile(r"\[\[(call|say) (.*?)\]\]", re.DOTALL)
RESULT = "<tool_response>"
CONTEXT = 200_000


class ScriptedEngine:
    """An ``EngineClient`` that writes what the prompt's script says, token by token."""

    is_ready = True
    down_reason = ""
    restarts = 0

    def __init__(self, tokenizer: Tokenizer, log: Path | None) -> None:
        self._tokenizer = tokenizer
        self._log = log
        self.info = EngineInfo(
            model="scripted",
            architecture="LlamaForCausalLM",
            dtype="float32",
            device="cpu",
            max_model_len=CONTEXT,
            max_num_seqs=64,
            max_num_batched_tokens=4096,
            vocab_size=tokenizer.vocab_size,
            num_blocks=CONTEXT,
            block_size=16,
            kernels="none",
            torch_version="none",
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        prompt = self._tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=False)
        reply = scripted_reply(prompt)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps({"prompt": prompt, "reply": reply}) + "\n")
        tokens = self._tokenizer.encode(reply, add_special_tokens=False)[: request.params.max_tokens]
        for at, token in enumerate(tokens):
            reason = FinishReason.STOP if at + 1 == len(tokens) else None
            yield Delta(request.request_id, (token,), None, 0, reason)

    async def stats(self) -> EngineStats:
        return EngineStats()

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        return Outcome(verb.value, Applied.APPLIED)

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        pass

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        return []


def scripted_reply(prompt: str) -> str:
    """What the model says next; without a script it says that it has none."""
    scripts = list(STEP.finditer(prompt))
    if not scripts:
        return "There is no script."
    first = scripts[-1].start()
    for match in reversed(scripts):  # the last run of steps with nothing but blanks between them
        if prompt[match.end() : first].strip() and match.start() != first:
            break
        first = match.start()
    steps = [match for match in scripts if match.start() >= first]
    done = prompt[steps[-1].end() :].count(RESULT)
    kind, text = steps[min(done, len(steps) - 1)].groups()
    if kind == "say":
        return text
    # Some clients quote what they were given on the command line.
    name, _, arguments = text.replace('\\"', '"').partition(" ")
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def main() -> None:
    """``python scripted_model.py PORT [LOG]``"""
    checkpoint = open_checkpoint(resolve("smollm2"))
    tokenizer = load_tokenizer(checkpoint)
    template = ChatTemplate(tokenizer.chat_template)
    context = ServerContext(
        engine=ScriptedEngine(tokenizer, Path(sys.argv[2]) if len(sys.argv) > 2 else None),
        tokenizer=tokenizer,
        chat_template=template,
        served_model_names=("scripted", "gpt-4o-mini", "claude-scripted"),
        reply_format=detect_format(tokenizer.chat_template, tokenizer),
        config=ServerConfig(),
    )
    run(context, listener=bind(port=int(sys.argv[1]), config=context.config))


if __name__ == "__main__":
    main()
