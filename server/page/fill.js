// Texts with masks, and the words that fit.

import { call } from "./api.js";
import { bars } from "./bars.js";
import { el, quietButton } from "./dom.js";
import { integer, lines, outputSettings } from "./settings_fields.js";
import { textInput } from "./text_input.js";
import { Workbench } from "./workbench.js";

const HOLE = "▁▁▁";

export class Fill extends Workbench {
  static task = "fill-mask";
  static label = "Fill";
  static lead = "Fill in the masked words.";
  static icon = "M4 6h16M4 18h16M9 12h6M4 10v4M20 10v4";
  static settings = outputSettings(
    integer("top_k", "Candidates", { min: 1 }),
    lines("targets", "Targets", { hint: "One per line" }),
  );

  constructor(models) {
    super(models);
    this.text = textInput("fill-mask", "Text with a mask", { rows: 3, otherwise: `The capital of France is ${this.#mask()}.` });
    this.inputArea.append(this.text.element);
    this.tools.append(quietButton("plus", "Insert mask", () => this.#insert()));
  }

  #mask(side = this.sides.active[0]) {
    return this.sides.facts(side).mask_token ?? "[MASK]";
  }

  #insert() {
    const { field } = this.text;
    field.setRangeText(this.#mask(), field.selectionStart, field.selectionEnd, "end");
    field.dispatchEvent(new Event("input"));
    field.focus();
  }

  isReady() {
    return this.text.field.value.includes(this.#mask());
  }

  request(side) {
    // Another model may write its mask in another way.
    const inputs = this.text.field.value.replaceAll(this.#mask(), this.#mask(side));
    return { path: "/fill-mask", body: { model: side.model, inputs, parameters: this.parametersOf(side) } };
  }

  async run(side, output, signal) {
    const { path, body } = this.request(side);
    const reply = await call(path, body, signal);
    const masks = Array.isArray(reply[0]) ? reply : [reply];
    const parts = body.inputs.split(this.#mask(side));
    const holes = masks.map((entries) => el("span.filled", entries[0]?.token_str.trim() || HOLE));
    const sentence = el("p.sentence", { dir: "auto" }, parts.flatMap((part, i) => [part, holes[i]]));
    const lists = masks.map((entries, i) => candidates(entries, holes[i], masks.length > 1 && `Mask ${i + 1}`));
    output.replaceChildren(sentence, ...lists);
  }
}

function candidates(entries, hole, title) {
  const shown = entries.map((entry) => ({ label: entry.token_str.trim() || entry.token_str, score: entry.score }));
  const choose = ({ label }) => (hole.textContent = label);
  return el("div.labelled", title && el("h3", title), bars(shown, { onclick: choose }));
}
