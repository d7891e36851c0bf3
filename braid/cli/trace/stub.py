"""``braid trace stub``: a server that computes nothing, to try replay on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from braid.lab.replay.stub.state import Stub


def stub(
    *,
    host: Annotated[str, Parameter(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Where to listen; 0 takes a free port and prints it.")] = 8000,
    model: Annotated[str, Parameter(help="The name it serves.")] = "stub",
    max_model_len: Annotated[int, Parameter(help="Its context, prompt and output together.")] = 1_048_576,
    ttft: Annotated[float, Parameter(help="Seconds to the first token.")] = 0.0,
    ttft_per_token: Annotated[
        float, Parameter(help="Seconds more for each prompt token that is not cached.")
    ] = 0.0,
    tbt: Annotated[float, Parameter(help="Seconds between tokens.")] = 0.0,
    concurrency: Annotated[
        int | None, Parameter(help="Requests served at a time; others wait.", show_default="any number")
    ] = None,
    cache_block: Annotated[
        int | None,
        Parameter(help="Endless prefix cache of blocks of so many tokens.", show_default="no cache"),
    ] = None,
    extras: Annotated[
        Literal["obeyed", "ignored", "refused"], Parameter(help="What becomes of ignore_eos and min_tokens.")
    ] = "obeyed",
    natural_tokens: Annotated[
        int | None,
        Parameter(help="Replies end by themselves after so many tokens.", show_default="max_tokens"),
    ] = None,
    fault: Annotated[
        tuple[str, ...],
        Parameter(
            help="NAME=SHARE of the requests, may be repeated; 429, 503, 500, html, rubbish, not_http, reset, cut, "
            "error_event or silence."
        ),
    ] = (),
    retry_after: Annotated[int, Parameter(help="Seconds, told with 429 and 503.")] = 1,
    accept_delay: Annotated[float, Parameter(help="Seconds before a new connection is read.")] = 0.0,
    stall_after: Annotated[
        float | None,
        Parameter(
            help="Seconds from the first request to one stall of the whole server.", show_default="none"
        ),
    ] = None,
    stall: Annotated[float, Parameter(help="Seconds that the stall lasts.")] = 1.0,
) -> None:
    """Serve an OpenAI-compatible API that computes nothing, with known times and faults, until Ctrl-C."""
    from braid.lab.replay.stub.server import serve
    from braid.lab.replay.stub.state import StubOptions

    options = StubOptions(
        model=model,
        max_model_len=max_model_len,
        ttft_s=ttft,
        ttft_per_token_s=ttft_per_token,
        tbt_s=tbt,
        concurrency=concurrency,
        cache_block=cache_block,
        natural_tokens=natural_tokens,
        extras=extras,
        faults=_shares(fault),
        retry_after_s=retry_after,
        accept_delay_s=accept_delay,
        stall=None if stall_after is None else (stall_after, stall),
    )
    seen = serve(options, host, port, _say)
    print(f"{len(seen.log):,} generation requests on {seen.num_connections:,} connections")


def _say(stub: Stub) -> None:
    print(f"stub {stub.options.model} on {stub.url}", flush=True)


def _shares(faults: tuple[str, ...]) -> dict[str, float]:
    from braid.lab.replay.stub.state import StubError

    shares = {}
    for word in faults:
        name, _, share = word.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise StubError(f"--fault must be NAME=SHARE, such as cut=0.01, got {word!r}") from None
    return shares
