// The settings that the page offers, by task. An empty field is not sent, and its default holds.

import { GENERATE } from "./generation_settings.js";

const field = (kind) => (name, label, more = {}) => ({ name, label, kind, ...more });
const [number, integer, lines, json, choice] = ["number", "integer", "lines", "json", "choice"].map(field);

GENERATE.at(-1).fields.push(
  json("*", "More parameters", { hint: "Other API parameters, as a JSON object", example: '{"logit_bias": {"9": 5}}' }),
);

const SCORE = number("threshold", "Min score", { min: 0, max: 1, step: 0.05 });
const answer = (...fields) => [{ title: "Output", isOpen: true, fields }];

export const GROUPS = {
  chat: GENERATE.map((group) => ({ ...group, fields: group.fields.filter((field) => field.not !== "chat") })),
  generate: GENERATE,
  classify: answer(
    integer("top_k", "Max labels", { min: 1 }),
    SCORE,
    choice("function_to_apply", "Function", { choices: [['"softmax"', "softmax: one label"], ['"sigmoid"', "sigmoid: several"], ['"none"', "none: raw scores"]] }),
    choice("truncate", "Long texts", { choices: [["true", "truncate"], ["false", "reject"]] }),
  ),
  ner: answer(
    choice("aggregation_strategy", "Aggregation", { choices: ["none", "simple", "first", "average", "max"].map((name) => [JSON.stringify(name), name]) }),
    SCORE,
    lines("ignore_labels", "Ignore labels", { hint: "One per line" }),
    integer("stride", "Stride", { min: 0, hint: "Overlap of windows in tokens, for long documents" }),
  ),
  "fill-mask": answer(
    integer("top_k", "Candidates", { min: 1 }),
    lines("targets", "Targets", { hint: "One per line" }),
  ),
  "question-answering": answer(
    integer("top_k", "Answers", { min: 1 }),
    choice("handle_impossible_answer", "No answer", { choices: [["true", "possible"], ["false", "impossible"]] }),
    integer("max_answer_len", "Max answer length", { min: 1, hint: "In tokens" }),
    choice("align_to_words", "Whole words", { choices: [["true", "yes"], ["false", "no"]] }),
    integer("max_seq_len", "Window length", { min: 1, hint: "In tokens, with the question" }),
    integer("doc_stride", "Stride", { min: 0, hint: "Overlap of windows in tokens, for long texts" }),
    integer("max_question_len", "Max question length", { min: 1, hint: "In tokens; a longer question is cut" }),
  ),
};

/** What the three buttons over the sampling settings fill in. */
export const PRESETS = [
  ["Precise", { temperature: 0 }],
  ["Balanced", { temperature: 0.7, top_p: 0.9 }],
  ["Creative", { temperature: 1.1, top_p: 0.95 }],
];
export const PRESET_FIELDS = ["temperature", "top_p", "top_k", "min_p"];
