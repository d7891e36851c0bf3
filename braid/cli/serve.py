"""``braid serve``: bind first, then find the model, then start the engine process beside the HTTP process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from rich.console import Console

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.cli.options import ObserveOptions, ServerOptions
from braid.cli.progress import ConsoleProgress, ProgressRelay
from braid.cli.streams import fill_standard_descriptors, safe_stderr
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.engine.client import ProcessClient
from braid.server.config import ServerConfig, ServerContext
from braid.server.guard.keys import named_keys, read_key_file
from braid.server.observe.access import JsonFormatter
from braid.server.observe.config import ObserveConfig
from braid.server.serve import bind, run
from braid.text.detect import detect_format, warm_up
from braid.text.template import ChatTemplate
from braid.text.template_probe import probe
from braid.text.tokenizer import Tokenizer, load_tokenizer


def serve(config: EngineConfig, options: ServerOptions, observe: ObserveOptions = ObserveOptions()) -> int:  # noqa: B008
    """Serve until a signal; what cannot work is said before anything slow begins.

    Raises:
        BraidError: the port, the model, the template or the machine does not allow it.
    """
    fill_standard_descriptors()
    console = Console(file=safe_stderr(), highlight=False)
    _log_to(options.log_level, observe.log_format)
    observe_config = ObserveConfig(
        request_log=observe.request_log,
        request_log_bytes=observe.request_log_bytes,
        otlp_endpoint=observe.otlp_endpoint,
        otel_legacy_names=observe.otel_legacy_names,
    )
    server_config = _server_config(options)
    listener = bind(options.host, options.port, config=server_config, allow_open=options.allow_open)
    with listener:
        progress = ConsoleProgress(console)
        checkpoint = open_checkpoint(resolve(config.model, progress=progress, offline=config.offline))
        tokenizer = load_tokenizer(checkpoint)
        template = chat_template(tokenizer, options.chat_template)
        reply_format = detect_format(
            None if template is None else template.source,
            tokenizer,
            None if checkpoint.gguf is not None else checkpoint.source.root,
            options.tool_call_parser,
        )
        engine = ProcessClient(
            config,
            lambda: tokenizer.eos_token_ids,
            on_progress=ProgressRelay(progress),
            log_level=options.log_level,
        )
        context = ServerContext(
            engine=engine,
            tokenizer=tokenizer,
            chat_template=template,
            reply_format=reply_format,
            served_model_names=options.served_model_name or (config.model,),
            config=server_config,
            observe=observe_config,
        )
        host, port = listener.getsockname()[:2]

        async def start() -> None:
            warm = asyncio.create_task(asyncio.to_thread(warm_up, reply_format))
            await engine.start()
            await warm
            announce(console, engine, context.served_model_names[0], host, port)

        run(context, listener=listener, startup=start, shutdown=engine.close)
    return 0


def _server_config(options: ServerOptions) -> ServerConfig:
    listed = () if options.api_key_file is None else read_key_file(options.api_key_file)
    return ServerConfig(
        api_keys=(*named_keys(options.api_key), *listed),
        share_prefix_cache=options.share_prefix_cache,
        allowed_hosts=options.allowed_hosts,
        max_queued=options.max_queued,
        max_ttl=options.max_ttl,
        drain_timeout=options.shutdown_timeout,
    )


def chat_template(tokenizer: Tokenizer, path: Path | None) -> ChatTemplate | None:
    """The template in ``path``, else the model's own; None where it has none.

    Raises:
        InvalidParameterError: the file cannot be read or is no template.
    """
    source = tokenizer.chat_template if path is None else _read(path)
    if source is None:
        return None
    probe(source, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    return ChatTemplate(source, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(
            f"cannot read the chat template {path}: {error}", param="chat_template"
        ) from error


def announce(console: Console, engine: ProcessClient, name: str, host: str, port: int) -> None:
    """Say how memory was reckoned, and where the server is."""
    for line in engine.reckoning:
        console.print(line, style="dim", markup=False, soft_wrap=True)
    address = f"[{host}]" if ":" in host else host
    console.print(f"Serving {name} at http://{address}:{port}/v1", markup=False, soft_wrap=True)


def _log_to(level: str, log_format: str = "logfmt") -> None:
    handler = logging.StreamHandler(safe_stderr())
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler])
