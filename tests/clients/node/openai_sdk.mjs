// The npm openai SDK: two turns around a tool; the first whole, the second streamed.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const script = '[[call add {"a": 2, "b": 40}]] [[say The sum is 42.]]';
const parameters = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } };
const tools = [{ type: "function", function: { name: "add", description: "Adds.", parameters } }];
const messages = [{ role: "user", content: script }];

const first = await client.chat.completions.create({ model: "scripted", messages, tools });
const message = first.choices[0].message;
const { a, b } = JSON.parse(message.tool_calls[0].function.arguments);
messages.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: String(a + b) });

let text = "";
const stream = await client.chat.completions.create({ model: "scripted", messages, tools, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log(text);
