// The settings that the page offers, by task. An empty field is not sent: the model's and the server's defaults hold.

const field = (kind) => (name, label, more = {}) => ({ name, label, kind, ...more });
const [number, integer, lines, json, choice] = ["number", "integer", "lines", "json", "choice"].map(field);

const SAMPLING = [
  number("temperature", "Temperature", { min: 0, max: 2, step: 0.05, hint: "0 always picks the most likely token" }),
  number("top_p", "Top p", { min: 0.01, max: 1, step: 0.01, hint: "Sample from the most likely tokens up to this total probability" }),
  integer("top_k", "Top k", { min: 0, hint: "Sample from the k most likely tokens" }),
  number("min_p", "Min p", { min: 0, max: 1, step: 0.01, hint: "Minimum probability, relative to the most likely token" }),
  integer("seed", "Seed", { min: 0, hint: "The same seed gives the same response" }),
];
const LENGTH = [
  integer("max_new_tokens", "Max new tokens", { min: 1 }),
  integer("min_new_tokens", "Min new tokens", { min: 0 }),
  lines("stop", "Stop sequences", { hint: "One per line" }),
];
const BEAMS = [
  integer("num_beams", "Beams", { min: 1, max: 16, hint: "Above 1: beam search" }),
  integer("num_return_sequences", "Outputs", { min: 1, max: 16, hint: "Number of samples or beams to show", not: "chat" }),
  number("length_penalty", "Length penalty", { step: 0.1, hint: "Above 0 favours long responses" }),
  choice("early_stopping", "Early stopping", { choices: [["true", "yes"], ["false", "heuristic"], ['"never"', "never"]] }),
  integer("num_beam_groups", "Beam groups", { min: 1, max: 16, hint: "Requires a diversity penalty" }),
  number("diversity_penalty", "Diversity penalty", { min: 0, step: 0.1 }),
];
const REPETITION = [
  number("repetition_penalty", "Repetition penalty", { min: 0.01, max: 10, step: 0.05, hint: "Above 1 discourages repetition" }),
  number("presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.1 }),
  number("frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.1 }),
  integer("no_repeat_ngram_size", "No-repeat n-gram size", { min: 0, hint: "N tokens in a row never repeat" }),
];
const RULES = [
  lines("banned_phrases", "Banned phrases", { hint: "One per line; they never appear" }),
  json("grammar", "Grammar", { hint: "Structure of the response", example: '{"type": "regex", "value": "[0-9]+"}' }),
  json("*", "More parameters", { hint: "Other API parameters, as a JSON object", example: '{"logit_bias": {"9": 5}}' }),
];

const GENERATE = [
  { title: "Sampling", isOpen: true, presets: true, fields: SAMPLING },
  { title: "Length", isOpen: true, fields: LENGTH },
  { title: "Beam search", fields: BEAMS },
  { title: "Repetition", fields: REPETITION },
  { title: "Constraints", fields: RULES },
];

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
};

/** What the three buttons over the sampling settings fill in. */
export const PRESETS = [
  ["Precise", { temperature: 0 }],
  ["Balanced", { temperature: 0.7, top_p: 0.9 }],
  ["Creative", { temperature: 1.1, top_p: 0.95 }],
];
export const PRESET_FIELDS = ["temperature", "top_p", "top_k", "min_p"];
