// @huggingface/inference: the tasks of encoder-decoders and of questions, each with its route as the endpoint.

import assert from "node:assert/strict";

import { InferenceClient } from "@huggingface/inference";

const { SERVER, HF_TOKEN } = process.env;
const of = (path) => new InferenceClient(HF_TOKEN).endpoint(SERVER + path);

const few = { generate_parameters: { max_new_tokens: 5, num_beams: 2 } };
const languages = { src_lang: "en", tgt_lang: "de" };
const one = await of("/translate").translation({ inputs: "a mill", parameters: { ...languages, ...few } });
assert.equal(typeof one.translation_text, "string");
const both = await of("/translate").translation({ inputs: ["a mill", "a river"], parameters: { ...languages, ...few } });
assert.deepEqual(both[0], one);
assert.equal(both.length, 2);
await assert.rejects(of("/translate").translation({ inputs: "a mill", parameters: { src_lang: "en", tgt_lang: "xx" } }), (error) => {
  assert.equal(error.httpResponse.status, 422);
  assert.equal(error.httpResponse.body.error.param, "parameters.tgt_lang");
  return true;
});

const summary = await of("/summarize").summarization({ inputs: "a mill", parameters: { ...few, truncation: "longest_first" } });
assert.equal(typeof summary.summary_text, "string");

const inputs = { question: "Who?", context: "Ann met Bob in Rome." };
const answer = await of("/question-answering").questionAnswering({ inputs });
assert.equal(inputs.context.slice(answer.start, answer.end), answer.answer);
console.log("ok");
