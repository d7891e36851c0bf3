"""Several streams at once from one engine in this process: ``python examples/streaming.py``."""

from __future__ import annotations

import asyncio

from braid import AsyncLLM, SamplingParams


async def follow(llm: AsyncLLM, name: str, prompt: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=24)
    async for output in llm.stream(prompt, params):
        print(f"{name}: {output.text!r}")


async def main() -> None:
    llm = AsyncLLM("smollm2")
    try:
        await asyncio.gather(
            follow(llm, "a", "Once upon a time"),
            follow(llm, "b", "The three laws of robotics are"),
        )
    finally:
        llm.close()


if __name__ == "__main__":
    asyncio.run(main())
