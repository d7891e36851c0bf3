"""Talk to a running ``braid serve`` through the anthropic package: ``python examples/anthropic_client.py``."""

from __future__ import annotations

import sys

from anthropic import Anthropic


def main(base_url: str = "http://127.0.0.1:8000") -> None:
    client = Anthropic(base_url=base_url, api_key="unused")
    model = client.models.list().data[0].id
    with client.messages.stream(
        model=model,
        max_tokens=32,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        extra_body={"temperature": 0},  # the package has no argument for it
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        print()
        usage = stream.get_final_message().usage
    print(
        f"{usage.cache_read_input_tokens} tokens of the prompt were cached, {usage.output_tokens} came back"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
