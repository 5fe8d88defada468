// Texts to labels, with bars.

import { call } from "./api.js";
import { bars } from "./bars.js";
import { el } from "./dom.js";
import { choice, integer, MIN_SCORE, outputSettings } from "./settings_fields.js";
import { load, save } from "./storage.js";
import { examples, textInput, tick } from "./text_input.js";
import { Workbench } from "./workbench.js";

const SAMPLES = [
  ["Praise", "I love how quickly this was solved, thank you!"],
  ["Complaint", "Third time it broke, and nobody answers my letters."],
  ["Between", "The room was clean, the breakfast forgettable."],
];

export class Classify extends Workbench {
  static task = "classify";
  static label = "Classify";
  static lead = "Classify a text: a score for each label.";
  static icon = "M5 20V11M12 20V4M19 20v-6";
  static settings = outputSettings(
    integer("top_k", "Max labels", { min: 1 }),
    MIN_SCORE,
    choice("function_to_apply", "Function", { choices: [['"softmax"', "softmax: one label"], ['"sigmoid"', "sigmoid: several"], ['"none"', "none: raw scores"]] }),
    choice("truncate", "Long texts", { choices: [["true", "truncate"], ["false", "reject"]] }),
  );

  constructor(models) {
    super(models);
    this.text = textInput("classify", "Text", { rows: 3, otherwise: SAMPLES[0][1] });
    this.second = textInput("classify-second", "Second text", { rows: 2, placeholder: "Optional: for models of text pairs" });
    this.mode = load("classify-mode", "one");
    this.inputArea.append(this.text.element, this.second.element, examples(this.text.field, SAMPLES));
    this.ticks = {
      lines: tick("One text per line", this.mode === "lines", (isOn) => this.#setMode(isOn ? "lines" : "one")),
      pair: tick("A pair of texts", this.mode === "pair", (isOn) => this.#setMode(isOn ? "pair" : "one")),
    };
    this.tools.append(this.ticks.lines, this.ticks.pair);
    this.#setMode(this.mode);
  }

  #setMode(mode) {
    this.mode = mode;
    save("classify-mode", mode);
    for (const [name, label] of Object.entries(this.ticks)) label.querySelector("input").checked = name === mode;
    this.second.element.hidden = mode !== "pair";
  }

  get #texts() {
    const text = this.text.field.value;
    return this.mode === "lines" ? text.split("\n").filter((line) => line.trim() !== "") : [text];
  }

  isReady() {
    return this.text.field.value.trim() !== "" && (this.mode !== "pair" || this.second.field.value.trim() !== "");
  }

  request(side) {
    const text = this.text.field.value;
    const inputs = { one: text, lines: this.#texts, pair: { text, text_pair: this.second.field.value } }[this.mode];
    return { path: "/classify", body: { model: side.model, inputs, parameters: this.parametersOf(side) } };
  }

  async run(side, output, signal) {
    const texts = this.#texts;
    const { path, body } = this.request(side);
    const replies = await call(path, body, signal);
    const one = (entries, i) => [
      this.mode === "lines" && el("p.quoted", { dir: "auto" }, texts[i]),
      entries.length ? bars(entries) : el("p.soft", "No label has a score this high."),
    ];
    output.replaceChildren(...replies.map((entries, i) => el("div.labelled", one(entries, i))));
  }
}
