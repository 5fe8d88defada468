// What settings are made of, and the settings of a generation. An empty field is not sent, and its default holds.

import { GENERATE } from "./generation_settings.js";

const field = (kind) => (name, label, more = {}) => ({ name, label, kind, ...more });
export const [number, integer, lines, json, choice] = ["number", "integer", "lines", "json", "choice"].map(field);

/** The settings of a task that has one group of them. */
export const outputSettings = (...fields) => [{ title: "Output", isOpen: true, fields }];

export const MIN_SCORE = number("threshold", "Min score", { min: 0, max: 1, step: 0.05 });

GENERATE.at(-1).fields.push(
  json("*", "More parameters", { hint: "Other API parameters, as a JSON object", example: '{"logit_bias": {"9": 5}}' }),
);

export const GENERATION = GENERATE;
export const CHAT = GENERATE.map((group) => ({ ...group, fields: group.fields.filter((field) => field.not !== "chat") }));

/** What the three buttons over the sampling settings fill in. */
export const PRESETS = [
  ["Precise", { temperature: 0 }],
  ["Balanced", { temperature: 0.7, top_p: 0.9 }],
  ["Creative", { temperature: 1.1, top_p: 0.95 }],
];
export const PRESET_FIELDS = ["temperature", "top_p", "top_k", "min_p"];
