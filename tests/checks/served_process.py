"""A whole server in a process of its own, with planned faults in its engine; run as a script by ``started``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from braid.core.faults import Fault

PATIENCE = 120.0


class Wanted(msgspec.Struct):
    """What the script is told; ``plans`` are the faults of the engine's first lives."""

    model: str
    plans: tuple[tuple[Fault, ...], ...] = ()
    engine: dict[str, Any] = {}
    drain_timeout: float = 60.0


class Started(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE)


@contextmanager
def started(
    model: Path,
    plans: Sequence[tuple[Fault, ...]] = (),
    *,
    engine: dict[str, Any],
    drain_timeout: float = 60.0,
) -> Iterator[Started]:
    """A server whose engine is ready."""
    wanted = Wanted(str(model), tuple(plans), engine, drain_timeout)
    command = [sys.executable, __file__, msgspec.json.encode(wanted).decode()]
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Started(process, f"http://127.0.0.1:{port}")
        finally:
            process.kill()


def main() -> None:
    """Serve, and print the port when the engine is ready."""
    from braid.checkpoint.open import open_checkpoint
    from braid.checkpoint.resolve import resolve
    from braid.core.config import EngineConfig
    from braid.engine.client import ProcessClient
    from braid.server.config import ServerConfig, ServerContext
    from braid.server.serve import bind, run
    from braid.text.template import ChatTemplate
    from braid.text.tokenizer import load_tokenizer

    wanted = msgspec.json.decode(sys.argv[1], type=Wanted)
    tokenizer = load_tokenizer(open_checkpoint(resolve(wanted.model)))
    engine = ProcessClient(
        EngineConfig(model=wanted.model, **wanted.engine),
        lambda: tokenizer.eos_token_ids,
        log_level="critical",
        faults=wanted.plans,
    )
    config = ServerConfig(drain_timeout=wanted.drain_timeout)
    context = ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=ChatTemplate(tokenizer.chat_template or "", bos_token=None, eos_token=None),
        served_model_names=("tiny",),
        config=config,
    )
    listener = bind(port=0, config=config)

    async def start() -> None:
        await engine.start()
        print(listener.getsockname()[1], flush=True)

    run(context, listener=listener, startup=start, shutdown=engine.close)


if __name__ == "__main__":
    main()
