// The settings that the page offers, by task. An empty field is not sent: the model's and the server's defaults hold.

const field = (kind) => (name, label, more = {}) => ({ name, label, kind, ...more });
const [number, integer, lines, json, choice] = ["number", "integer", "lines", "json", "choice"].map(field);

const SAMPLING = [
  number("temperature", "Temperature", { min: 0, max: 2, step: 0.05, hint: "0 always takes the likeliest token" }),
  number("top_p", "Top p", { min: 0.01, max: 1, step: 0.01, hint: "Keep the likeliest tokens up to this probability" }),
  integer("top_k", "Top k", { min: 0, hint: "Keep so many of the likeliest tokens" }),
  number("min_p", "Min p", { min: 0, max: 1, step: 0.01, hint: "Keep tokens with this part of the best one’s probability" }),
  integer("seed", "Seed", { min: 0, hint: "The same seed gives the same answer" }),
];
const LENGTH = [
  integer("max_new_tokens", "Most new tokens", { min: 1 }),
  integer("min_new_tokens", "Fewest new tokens", { min: 0 }),
  lines("stop", "Stop texts", { hint: "One a line" }),
];
const BEAMS = [
  integer("num_beams", "Beams", { min: 1, max: 16, hint: "Above 1 searches for the likeliest whole answer" }),
  integer("num_return_sequences", "Answers", { min: 1, max: 16, hint: "How many beams, or samples, are shown", not: "chat" }),
  number("length_penalty", "Length penalty", { step: 0.1, hint: "Above 0 favours long answers" }),
  choice("early_stopping", "Stop early", { choices: [["true", "at once"], ["false", "by estimate"], ['"never"', "never"]] }),
  integer("num_beam_groups", "Groups", { min: 1, max: 16, hint: "Groups of beams that differ; needs diversity" }),
  number("diversity_penalty", "Diversity", { min: 0, step: 0.1 }),
];
const REPETITION = [
  number("repetition_penalty", "Repetition penalty", { min: 0.01, max: 10, step: 0.05, hint: "Above 1 makes what was said less likely" }),
  number("presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.1 }),
  number("frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.1 }),
  integer("no_repeat_ngram_size", "No repeated n-grams", { min: 0, hint: "So many tokens in a row never come twice" }),
];
const RULES = [
  lines("banned_phrases", "Banned phrases", { hint: "One a line; they never appear" }),
  json("grammar", "Grammar", { hint: "The answer has this structure", example: '{"type": "regex", "value": "[0-9]+"}' }),
  json("*", "More parameters", { hint: "Any other of the API’s, as a JSON object", example: '{"logit_bias": {"9": 5}}' }),
];

const GENERATE = [
  { title: "Sampling", isOpen: true, presets: true, fields: SAMPLING },
  { title: "Length", isOpen: true, fields: LENGTH },
  { title: "Beam search", fields: BEAMS },
  { title: "Repetition", fields: REPETITION },
  { title: "Rules", fields: RULES },
];

const SCORE = number("threshold", "Least score", { min: 0, max: 1, step: 0.05 });
const answer = (...fields) => [{ title: "Answer", isOpen: true, fields }];

export const GROUPS = {
  chat: GENERATE.map((group) => ({ ...group, fields: group.fields.filter((field) => field.not !== "chat") })),
  generate: GENERATE,
  classify: answer(
    integer("top_k", "Most labels", { min: 1 }),
    SCORE,
    choice("function_to_apply", "Scores", { choices: [['"softmax"', "softmax: one label"], ['"sigmoid"', "sigmoid: several"], ['"none"', "as they are"]] }),
    choice("truncate", "Too long", { choices: [["true", "cut"], ["false", "refuse"]] }),
  ),
  ner: answer(
    choice("aggregation_strategy", "Join tokens", { choices: ["none", "simple", "first", "average", "max"].map((name) => [JSON.stringify(name), name]) }),
    SCORE,
    lines("ignore_labels", "Leave out", { hint: "One label a line" }),
    integer("stride", "Overlap of windows", { min: 0, hint: "In tokens, where a document is longer than the model" }),
  ),
  "fill-mask": answer(
    integer("top_k", "Candidates", { min: 1 }),
    lines("targets", "Only these words", { hint: "One a line" }),
  ),
};

/** What the three buttons over the sampling settings fill in. */
export const PRESETS = [
  ["Precise", { temperature: 0 }],
  ["Balanced", { temperature: 0.7, top_p: 0.9 }],
  ["Creative", { temperature: 1.1, top_p: 0.95 }],
];
export const PRESET_FIELDS = ["temperature", "top_p", "top_k", "min_p"];
