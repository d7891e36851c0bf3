"""A tool loop with the openai package against a running ``braid serve``: ``python examples/tools.py``."""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city, now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def get_weather(city: str) -> str:
    return f"It is 18 degrees and sunny in {city}."


def main(base_url: str = "http://127.0.0.1:8000/v1") -> None:
    client = OpenAI(base_url=base_url, api_key="unused")
    model = client.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]

    # "required" holds the model to calls with valid arguments; with "auto" it decides for itself.
    reply = client.chat.completions.create(
        model=model,
        messages=messages,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=128,
    )
    message = reply.choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        if call.type == "function":
            result = get_weather(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
    print(reply.choices[0].message.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
