"""The command line: verbs, and the one place where errors become a line on stderr.

Exit status: 0 done, 1 a bug in Braid, 2 something the user can change, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from braid import __version__
from braid.cli.configfile import from_config_option
from braid.cli.options import (
    DEFAULT_MODEL,
    EngineOptions,
    Model,
    ObserveOptions,
    SamplingOptions,
    ServerOptions,
)
from braid.cli.sim import sim
from braid.cli.trace import trace
from braid.core.config import SERVED_PHASES
from braid.core.errors import BraidError

DEBUG = "--debug"
DEFAULT_URL = "http://127.0.0.1:8000"

app = App(
    name="braid",
    help="Serve large language models on the machine you have, over an OpenAI-compatible API.",
    help_epilogue=(
        "Every option has an environment twin, BRAID_ and its name. With --debug anywhere, errors show their traceback."
    ),
    version=__version__,
    config=[Env("BRAID_", command=False), from_config_option],
    help_format="plaintext",
    result_action="return_value",
)
app.command(trace)
app.command(sim)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    try:
        result = app(words, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        extra = "lab" if words[:1] in (["trace"], ["sim"]) else "engine"
        print(f"braid: {describe(error, extra)}", file=sys.stderr)
        return 2 if is_users(error) else 1
    return result if isinstance(result, int) else 0


def is_users(error: Exception) -> bool:
    """True for what the user can change; anything else is a bug."""
    return isinstance(error, BraidError | CycloptsError) or _missing_extra(error)


def describe(error: Exception, extra: str = "engine") -> str:
    """One line for the user. ``extra`` is the one that holds all that the command imports."""
    if isinstance(error, CycloptsError) and isinstance(error.__cause__, BraidError):
        error = error.__cause__
    if _missing_extra(error):
        return f"error: this command needs {error.name}: pip install 'braid[{extra}]'"  # type: ignore[attr-defined]
    text = " ".join(str(error).split())
    if is_users(error):
        return f"error: {text}"
    return f"internal error: {type(error).__name__}: {text} (the traceback: {DEBUG})"


def _missing_extra(error: Exception) -> bool:
    return isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("braid")


@app.command
def serve(
    model: Model = DEFAULT_MODEL,
    *,
    server: ServerOptions = ServerOptions(),  # noqa: B008  (frozen)
    observe: ObserveOptions = ObserveOptions(),  # noqa: B008
    engine: EngineOptions = EngineOptions(),  # noqa: B008
) -> int:
    """Serve a model over HTTP until SIGINT or SIGTERM."""
    # A wrong value is said before anything heavy is imported.
    config = engine.config(model, phases=SERVED_PHASES)
    from braid.cli.serve import serve as run

    return run(config, server, observe)


@app.command
def generate(
    model: Model = DEFAULT_MODEL,
    *,
    prompt: Annotated[
        tuple[str, ...],
        Parameter(help="Text to continue; may be repeated. Without it, standard input is the prompt."),
    ] = (),
    json: Annotated[bool, Parameter(help="Print one JSON object per prompt.", negative=())] = False,
    sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
    engine: EngineOptions = EngineOptions(),  # noqa: B008
) -> None:
    """Continue texts in this process, without a server."""
    config, params = engine.config(model), sampling.params()
    from braid.cli.generate import generate as run

    run(config, list(prompt), params, as_json=json)


@app.command
def chat(
    model: Model = DEFAULT_MODEL,
    *,
    system: Annotated[str | None, Parameter(help="System message.", show_default="none")] = None,
    sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
    engine: EngineOptions = EngineOptions(),  # noqa: B008
) -> None:
    """Talk to a model in this terminal. /reset forgets, /exit or Ctrl-D ends, Ctrl-C stops an answer."""
    config, params = engine.config(model), sampling.params()
    from braid.cli.chat import chat as run

    run(config, system, params)


@app.command
def pull(
    model: Annotated[
        str, Parameter(help="A hub id (org/name, org/name:Q4_K_M, org/name@revision) or an alias.")
    ],
) -> None:
    """Download a model, with progress and resume, and print where it is."""
    from braid.cli.models import pull as run

    run(model)


@app.command
def convert(
    model: Annotated[str, Parameter(help="A mixture of experts: a folder, a .gguf file or a hub id.")],
    *,
    out: Annotated[Path, Parameter(help="The new folder.")],
    experts: Annotated[
        Literal["auto", "float32", "bf16", "bfloat16", "int8", "int4"],
        Parameter(
            help="How experts are stored and computed with; auto is what they run in otherwise: nothing is lost."
        ),
    ] = "auto",
    offline: Annotated[bool, Parameter(help="Take hub models from disk only.", negative=())] = False,
) -> None:
    """Make a folder whose experts need not fit into memory: `braid serve FOLDER --expert-memory 25%`."""
    from braid.cli.convert import run

    run(model, experts, out, offline=offline)


@app.command
def models() -> None:
    """List the aliases and the models that are on disk."""
    from braid.cli.models import list_models

    list_models()


@app.command
def top(
    url: Annotated[str, Parameter(help="Where the server is.")] = DEFAULT_URL,
    *,
    api_key: Annotated[
        str | None, Parameter(help="Key of a server that asks for one.", show_default="none")
    ] = None,
    interval: Annotated[float, Parameter(help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, Parameter(help="Print one frame and end.", negative=())] = False,
) -> int:
    """Watch a running server: engine, requests, KV blocks, tokens per second, latencies, programs."""
    from braid.cli.top import top as run

    return run(url, api_key=api_key, interval=interval, once=once)


@app.command
def calibrate(
    model: Model = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="Write the tables here, as JSON.", show_default="in the cache folder, by model"),
    ] = None,
    repeats: Annotated[int, Parameter(help="How often each step is measured.")] = 3,
    engine: EngineOptions = EngineOptions(),  # noqa: B008
) -> None:
    """Measure how long steps take on this machine: tables for simulations."""
    config = engine.config(model)
    from braid.cli.calibrate import calibrate as run

    run(config, out, repeats)


@app.command
def doctor(
    *, json: Annotated[bool, Parameter(help="Print one JSON object instead of tables.", negative=())] = False
) -> None:
    """Show what this machine has, how fast its memory is, and which models fit."""
    from braid.cli.doctor import doctor as run

    run(as_json=json)
