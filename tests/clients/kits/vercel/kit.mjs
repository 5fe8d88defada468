// The AI SDK of Vercel, and OpenAI's own library, on Node: text, streams, objects, tools, errors.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL;
const apiKey = process.env.OPENAI_API_KEY;
const provider = createOpenAICompatible({ name: "sluice", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const model = provider("smollm2-135m-instruct");
const prompt = "What is the capital of Japan?";

const { text, usage } = await generateText({ model, prompt, temperature: 0, maxOutputTokens: 20 });
assert.match(text, /Tokyo/);
assert.ok(usage.totalTokens > 0);

const partsOf = async (stream) => {
  const parts = [];
  for await (const part of stream.textStream) parts.push(part);
  return parts;
};
const stream = streamText({ model, prompt, temperature: 0, maxOutputTokens: 20 });
assert.equal((await partsOf(stream)).join(""), text);
const story = streamText({ model, prompt: "Tell me a story.", temperature: 0, maxOutputTokens: 40 });
assert.ok((await partsOf(story)).length > 4);
assert.ok((await stream.usage).outputTokens > 0);
assert.equal(await stream.finishReason, "stop");

const { object } = await generateObject({
  model,
  schema: z.object({ name: z.string().max(20), age: z.number().int().min(0).max(120) }),
  prompt: "Invent a person with a name and an age.",
  temperature: 0,
  maxOutputTokens: 80,
});
assert.equal(typeof object.name, "string");
assert.ok(Number.isInteger(object.age));

const called = await generateText({
  model,
  prompt: "How is the weather in Rome?",
  tools: { weather: tool({ description: "The weather in a city", inputSchema: z.object({ city: z.enum(["Tokyo", "Rome"]) }) }) },
  toolChoice: "required",
  temperature: 0,
  maxOutputTokens: 60,
});
assert.equal(called.toolCalls[0].toolName, "weather");
assert.match(called.toolCalls[0].input.city, /Tokyo|Rome/);

const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("minilm"), values: ["a cat", "a kitten"] });
assert.equal(embeddings.length, 2);

await assert.rejects(generateText({ model: provider("no-such-model"), prompt, maxRetries: 0 }), (error) => {
  assert.ok(APICallError.isInstance(error));
  assert.equal(error.statusCode, 404);
  assert.match(error.message, /no-such-model/);
  return true;
});

const openai = new OpenAI({ baseURL, apiKey });
const chat = await openai.chat.completions.create({
  model: "smollm2-135m-instruct", messages: [{ role: "user", content: prompt }], temperature: 0, max_completion_tokens: 20,
});
assert.equal(chat.choices[0].message.content, text);
const chunks = [];
for await (const chunk of await openai.chat.completions.create({
  model: "smollm2-135m-instruct", messages: [{ role: "user", content: prompt }], temperature: 0, max_tokens: 20, stream: true,
})) chunks.push(chunk);
assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), text);
console.log("ok");
