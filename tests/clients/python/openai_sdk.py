"""openai-python: two turns around a tool, whole and streamed, in both of its APIs."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", _strict_response_validation=True)
SCRIPT = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
function = {"name": "add", "description": "Adds.", "parameters": PARAMETERS}
messages = [{"role": "user", "content": SCRIPT}]
tools = [{"type": "function", "function": function}]

first = client.chat.completions.create(model="scripted", messages=messages, tools=tools)
message = first.choices[0].message
call = message.tool_calls[0]
assert first.choices[0].finish_reason == "tool_calls"
assert json.loads(call.function.arguments) == {"a": 2, "b": 40}
messages += [
    message.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": call.id, "content": "42"},
]
with client.chat.completions.stream(model="scripted", messages=messages, tools=tools) as stream:
    text = "".join(event.delta for event in stream if event.type == "content.delta")
assert text == "The sum is 42.", text

tools = [{"type": "function", "strict": False, **function}]
first = client.responses.create(model="scripted", input=SCRIPT, tools=tools)
call = next(item for item in first.output if item.type == "function_call")
items = [
    {"role": "user", "content": SCRIPT},
    call.model_dump(exclude_none=True),
    {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
]
with client.responses.stream(model="scripted", input=items, tools=tools) as stream:
    final = stream.get_final_response()
print(final.output_text)
