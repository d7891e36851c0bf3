"""openai-agents: its own loop around a Python function, over chat completions and over responses."""

import sys

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="unused")
SCRIPT = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]'


@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


for model in (OpenAIChatCompletionsModel("scripted", client), OpenAIResponsesModel("scripted", client)):
    agent = Agent(name="adder", instructions="You add.", model=model, tools=[add])
    answer = Runner.run_sync(agent, SCRIPT)
    assert answer.final_output == "The sum is 42.", answer.final_output
print(answer.final_output)
