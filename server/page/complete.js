// Plain completion: a text goes on, with its beams and its tokens' probabilities where that is wished.

import { el, freshId } from "./dom.js";
import { load, save } from "./storage.js";
import { TemplateForm } from "./template_form.js";
import { examples, textInput, tick } from "./text_input.js";
import { Writing } from "./writing.js";

const TOP_TOKENS = 5;
const SAMPLES = [
  ["Story", "Once upon a time, a lighthouse keeper"],
  ["Fact", "The sky is blue because"],
  ["List", "The four seasons are spring,"],
];

export class Complete extends Writing {
  static task = "generate";
  static label = "Complete";
  static lead = "Continue a text.";
  static icon = "M4 6h16M4 11h16M4 16h8M16 14v5M13.5 16.5h5";

  constructor(models, info) {
    super(models);
    this.text = textInput("generate", "Prompt", { rows: 4, otherwise: SAMPLES[0][1] });
    this.withTokens = load("tokens", false);
    this.form = null;
    this.inputArea.append(this.text.element, examples(this.text.field, SAMPLES));
    const templates = info.templates.filter(({ task }) => task === "generate");
    if (templates.length) this.#offer(templates);
    this.tools.append(
      tick("Probabilities", this.withTokens, (isOn) => {
        this.withTokens = isOn;
        save("tokens", isOn);
      }),
    );
  }

  #offer(templates) {
    const id = freshId("template");
    const plain = [...this.inputArea.children];
    const slot = el("div");
    const choose = (name) => {
      const template = templates.find((candidate) => candidate.name === name);
      this.form = template ? new TemplateForm(template) : null;
      slot.replaceChildren(...(this.form ? [this.form.element] : []));
      for (const node of plain) node.hidden = this.form !== null;
    };
    const names = [...new Set(templates.map(({ name }) => name))];
    const options = [el("option", { value: "" }, "none: a plain text"), ...names.map((name) => el("option", { value: name }, name))];
    const select = el("select.control", { id, onchange: () => choose(select.value) }, options);
    this.inputArea.prepend(el("div.field-inline", el("label", { for: id }, "Template"), select), slot);
  }

  prompt({ inputs }) {
    return inputs ?? "";
  }

  isReady() {
    return this.form !== null || this.text.field.value !== "";
  }

  request(side) {
    const prompt = this.form ? this.form.fields() : { inputs: this.text.field.value };
    const told = this.withTokens ? { details: true, top_n_tokens: TOP_TOKENS } : {};
    return { path: "/generate", body: { model: side.model, ...prompt, parameters: { ...told, ...this.parametersOf(side) }, stream: true } };
  }
}
