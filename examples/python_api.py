"""Generate in this process, without a server: ``python examples/python_api.py``."""

from __future__ import annotations

from braid import LLM, SamplingParams


def main() -> None:
    with LLM("smollm2") as llm:
        prompts = ["The capital of France is", "Water boils at"]
        for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
            print(repr(output.text), output.finish_reason)

        question = [{"role": "user", "content": "Name three primary colours."}]
        print(llm.chat(question, SamplingParams(temperature=0, max_tokens=48)).text)


if __name__ == "__main__":
    main()
