"""Answers held to a JSON schema and to a list of choices: ``python examples/structured.py``."""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI

PERSON: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 40},
                "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
                "field": {"enum": ["physics", "chemistry", "literature"]},
            },
            "required": ["name", "born", "field"],
            "additionalProperties": False,
        },
    },
}


def main(base_url: str = "http://127.0.0.1:8000/v1") -> None:
    client = OpenAI(base_url=base_url, api_key="unused")
    model = client.models.list().data[0].id

    question: list[Any] = [{"role": "user", "content": "Who was Marie Curie? Answer in JSON."}]
    reply = client.chat.completions.create(
        model=model, messages=question, response_format=PERSON, temperature=0, max_tokens=128
    )
    print(json.loads(reply.choices[0].message.content or ""))

    review: list[Any] = [{"role": "user", "content": "I loved this film. Is this positive or negative?"}]
    choices = {"structured_outputs": {"choice": ["positive", "negative"]}}
    reply = client.chat.completions.create(model=model, messages=review, temperature=0, extra_body=choices)
    print(reply.choices[0].message.content)


if __name__ == "__main__":
    main(*sys.argv[1:])
