// What the npm clients get from a server: node clients.mjs <address>/v1, beside a node_modules with `openai`, `ai`,
// `@ai-sdk/openai-compatible` and `zod`. Prints one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";

const [baseURL] = process.argv.slice(2);
const model = "small";
const messages = [{ role: "user", content: "add" }];
const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
const seen = {};

const openai = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const ask = { model, messages, max_tokens: 8, temperature: 0 };
const chat = await openai.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 });
seen.chat = chat.choices[0].message.content;
seen.logprobs = chat.choices[0].logprobs.content.map((token) => token.top_logprobs.length);
seen.stream = "";
for await (const chunk of await openai.chat.completions.create({ ...ask, stream: true })) seen.stream += chunk.choices[0].delta.content ?? "";
const tools = [{ type: "function", function: { name: "add", parameters: schema } }];
const called = await openai.chat.completions.create({ model, messages, tools, tool_choice: "required" });
seen.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);
const response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
seen.object = JSON.parse((await openai.chat.completions.create({ model, messages, response_format })).choices[0].message.content);
seen.response = (await openai.responses.create({ model, input: "add", max_output_tokens: 8, temperature: 0 })).output_text;
seen.error = await openai.chat.completions.create({ ...ask, temperature: 9 }).catch((error) => [error.status, error.param]);

const sdk = createOpenAICompatible({ name: "small", baseURL, supportsStructuredOutputs: true })(model);
const settings = { model: sdk, prompt: "add", maxRetries: 0 };
seen.sdkChat = (await generateText({ ...settings, maxOutputTokens: 8, temperature: 0 })).text;
seen.sdkStream = "";
for await (const text of streamText({ ...settings, maxOutputTokens: 8, temperature: 0 }).textStream) seen.sdkStream += text;
const add = tool({ description: "adds", inputSchema: jsonSchema(schema) });
seen.sdkCall = (await generateText({ ...settings, tools: { add }, toolChoice: "required" })).toolCalls.map((call) => call.input)[0];
seen.sdkObject = (await generateObject({ ...settings, schema: jsonSchema(schema) })).object;
seen.sdkError = await generateText({ ...settings, temperature: 9 }).catch((error) => error.statusCode);
console.log(JSON.stringify(seen));
