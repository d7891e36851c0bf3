"""instructor: a typed answer through a named tool call, then a plain turn that follows it."""

import sys

import instructor
import openai
from pydantic import BaseModel


class Sum(BaseModel):
    """The sum of two numbers."""

    total: int


raw = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused")
client = instructor.from_openai(raw, mode=instructor.Mode.TOOLS)
messages = [{"role": "user", "content": '[[call Sum {"total": 42}]] [[say The sum is 42.]]'}]
answer, completion = client.chat.completions.create_with_completion(
    model="scripted", response_model=Sum, messages=messages
)
assert answer.total == 42
message = completion.choices[0].message
result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": str(answer.total)}
messages += [message.model_dump(exclude_none=True), result]
print(raw.chat.completions.create(model="scripted", messages=messages).choices[0].message.content)
