// A prompt template of the server's as a form: one field for each of its variables.

import { el, freshId } from "./dom.js";

const MULTILINE_ABOVE = 120;

export class TemplateForm {
  #readers = new Map();

  constructor(template) {
    this.template = template;
    const fields = Object.entries(template.variables).map(([name, variable]) => this.#field(name, variable));
    this.element = el("div.template", template.description && el("p.soft", template.description), fields);
    if (template.examples) this.element.append(this.#examples(template.examples));
  }

  /** What stands in a request's body; throws in plain words where a field cannot be read. */
  fields() {
    const variables = {};
    for (const [name, read] of this.#readers) {
      const value = read();
      if (value !== undefined && name !== "*") variables[name] = value;
    }
    const examples = this.#readers.get("*")?.();
    return { template: this.template.name, variables, ...(examples ? { examples } : {}) };
  }

  #field(name, variable) {
    const id = freshId("variable");
    const control = controlOf(variable, id);
    this.#readers.set(name, () => valueOf(variable, control));
    const said = [variable.description, variable.required ? null : "may be left empty"].filter(Boolean).join("; ");
    return el("div.field-block", el("label", { for: id }, name), control, said && el("p.hint", said));
  }

  #examples({ fields, min_count: least }) {
    const id = freshId("examples");
    const sample = JSON.stringify([Object.fromEntries(Object.keys(fields).map((name) => [name, "…"]))]);
    const control = el("textarea.control.mono", { id, rows: 2, placeholder: sample, spellcheck: "false" });
    this.#readers.set("*", () => {
      if (control.value.trim() === "") return undefined;
      try {
        return JSON.parse(control.value);
      } catch {
        throw Object.assign(new Error(`The examples are not JSON: ${sample}`), { name: "Unreadable" });
      }
    });
    const label = least ? `Examples (at least ${least})` : "Examples";
    return el("div.field-block", el("label", { for: id }, label), control, el("p.hint", "A JSON list of objects"));
  }
}

function controlOf(variable, id) {
  if (variable.choices || variable.type === "boolean") {
    const choices = variable.choices ?? [true, false];
    const options = choices.map((choice) => el("option", { value: JSON.stringify(choice) }, String(choice)));
    return el("select.control", { id }, variable.required ? [] : el("option", { value: "" }, "default"), options);
  }
  if (variable.type === "integer" || variable.type === "number") {
    const step = variable.type === "integer" ? 1 : "any";
    return el("input.control", { id, type: "number", min: variable.minimum, max: variable.maximum, step });
  }
  const isLong = variable.type === "list" || (variable.max_length ?? Infinity) > MULTILINE_ABOVE;
  const placeholder = variable.type === "list" ? "One per line" : String(variable.default ?? "");
  return el(isLong ? "textarea.control" : "input.control", { id, rows: isLong ? 3 : null, dir: "auto", placeholder });
}

function valueOf(variable, control) {
  if (control.value === "") return undefined;
  if (control.tagName === "SELECT") return JSON.parse(control.value);
  if (variable.type === "integer" || variable.type === "number") return Number(control.value);
  return variable.type === "list" ? control.value.split("\n").filter((line) => line !== "") : control.value;
}
