// The npm ai SDK: its own loop around a tool, streamed.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, stepCountIs, streamText, tool } from "ai";

const provider = createOpenAICompatible({ name: "braid", baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const inputSchema = jsonSchema({
  type: "object",
  properties: { a: { type: "integer" }, b: { type: "integer" } },
  required: ["a", "b"],
});
const result = streamText({
  model: provider("scripted"),
  prompt: '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]',
  tools: { add: tool({ description: "Adds.", inputSchema, execute: async ({ a, b }) => a + b }) },
  stopWhen: stepCountIs(3),
});
let text = "";
for await (const piece of result.textStream) text += piece;
console.log(text);
