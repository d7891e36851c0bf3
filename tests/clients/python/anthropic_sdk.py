"""anthropic-python: two turns around a tool, whole and streamed."""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="unused")
SCRIPT = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
tools = [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}]
messages = [{"role": "user", "content": SCRIPT}]
first = client.messages.create(model="scripted", max_tokens=200, messages=messages, tools=tools)
assert first.stop_reason == "tool_use", first
use = next(block for block in first.content if block.type == "tool_use")
assert use.input == {"a": 2, "b": 40}
result = {"type": "tool_result", "tool_use_id": use.id, "content": "42"}
messages += [
    {"role": "assistant", "content": [block.model_dump() for block in first.content]},
    {"role": "user", "content": [result]},
]
assert client.messages.count_tokens(model="scripted", messages=messages, tools=tools).input_tokens > 10
with client.messages.stream(model="scripted", max_tokens=200, messages=messages, tools=tools) as stream:
    print("".join(stream.text_stream))
