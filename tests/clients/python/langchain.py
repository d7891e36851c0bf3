"""langchain-openai: a bound tool, its result, and the final text as a stream."""

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

SCRIPT = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


model = ChatOpenAI(model="scripted", base_url=sys.argv[1] + "/v1", api_key="unused").bind_tools([add])
messages = [HumanMessage(SCRIPT)]
first = model.invoke(messages)
call = first.tool_calls[0]
assert call["args"] == {"a": 2, "b": 40}
messages += [first, ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])]
print("".join(str(chunk.content) for chunk in model.stream(messages)))
