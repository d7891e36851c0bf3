"""pydantic-ai: its agent loop around a typed tool."""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

SCRIPT = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]'
provider = OpenAIProvider(base_url=sys.argv[1] + "/v1", api_key="unused")
agent = Agent(OpenAIChatModel("scripted", provider=provider))


@agent.tool_plain
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


print(agent.run_sync(SCRIPT).output)
