// A form over a table of settings. Its values are a plain object: name to value, without what is empty.

import { el, freshId } from "./dom.js";
import { PRESET_FIELDS, PRESETS } from "./settings_fields.js";

/** The parameters of a request, from a form's values. */
export function parameters(values) {
  const { "*": more, ...named } = values;
  return { ...named, ...more };
}

/**
 * A form of groups of fields. `values` is changed in place and `onChange` told of it; `placeholder(name)` is what holds where a
 * field is empty.
 */
export class SettingsForm {
  #fields = new Map();

  constructor(groups, values, { onChange, placeholder }) {
    this.values = values;
    this.onChange = onChange;
    this.element = el("form.settings", { novalidate: true, onsubmit: (event) => event.preventDefault() });
    for (const group of groups) this.element.append(this.#group(group, placeholder));
  }

  /** Point at the field that the server refused, if it is one of these. */
  point(param, message) {
    const name = param.replace(/^parameters\./, "").split(".")[0];
    this.#fields.get(name)?.complain(message);
  }

  clearComplaints() {
    for (const field of this.#fields.values()) field.complain("");
  }

  get isValid() {
    return [...this.#fields.values()].every((field) => !field.isWrong());
  }

  #group({ title, isOpen, presets, fields }, placeholder) {
    const isUsed = fields.some((field) => this.values[field.name] !== undefined);
    const rows = fields.map((field) => this.#field(field, placeholder(field.name)));
    return el(
      "details.settings-group",
      { open: Boolean(isOpen || isUsed) },
      el("summary", title),
      presets && this.#presets(),
      rows,
    );
  }

  #presets() {
    const fill = (preset) => {
      for (const name of PRESET_FIELDS) this.#fields.get(name).set(preset[name]);
      this.onChange();
    };
    const buttons = PRESETS.map(([label, preset]) =>
      el("button.chip", { onclick: () => fill(preset) }, label),
    );
    return el("div.chips", { role: "group", "aria-label": "Presets" }, buttons);
  }

  #field(field, placeholder) {
    const control = controlOf(field, this.values[field.name], placeholder);
    const id = freshId("setting");
    const error = el("p.field-error", { id: `${id}-error`, hidden: true });
    control.id = id;
    control.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
    const complain = (message) => {
      error.textContent = message;
      error.hidden = message === "";
      control.setAttribute("aria-invalid", String(message !== ""));
      if (message) control.closest("details").open = true;
    };
    const take = () => {
      const [value, problem] = read(field, control);
      complain(problem);
      if (value === undefined) delete this.values[field.name];
      else this.values[field.name] = value;
      this.onChange();
    };
    control.addEventListener("change", take);
    const set = (value) => {
      control.value = written(field, value);
      take();
    };
    this.#fields.set(field.name, { complain, set, isWrong: () => read(field, control)[1] !== "" });
    const isWide = field.kind === "lines" || field.kind === "json";
    return el(
      isWide ? "div.field.wide" : "div.field",
      el("label", { for: id }, field.label),
      control,
      el("p.hint", { id: `${id}-hint` }, field.hint ?? ""),
      error,
    );
  }
}

function controlOf(field, value, placeholder) {
  if (field.kind === "choice") {
    const options = [["", "default"], ...field.choices];
    const node = el("select.control", options.map(([key, label]) => el("option", { value: key }, label)));
    node.value = written(field, value);
    return node;
  }
  if (field.kind === "lines" || field.kind === "json") {
    const text = field.example ?? placeholder;
    return el("textarea.control.mono", { rows: 2, spellcheck: "false", placeholder: text, value: written(field, value) });
  }
  const { min, max, step } = field;
  const props = { type: "number", inputmode: "decimal", min, max, step: step ?? 1, placeholder: placeholder || "default" };
  return el("input.control", { ...props, value: written(field, value) });
}

/** A value as its control holds it. */
function written(field, value) {
  if (value === undefined || value === null) return "";
  if (field.kind === "lines") return [value].flat().join("\n");
  return field.kind === "json" || field.kind === "choice" ? JSON.stringify(value) : String(value);
}

/** The control's value, undefined where it is empty, and what is wrong with it. */
function read(field, control) {
  const text = control.value;
  if (field.kind === "number" || field.kind === "integer") return readNumber(field, control);
  if (text.trim() === "") return [undefined, ""];
  if (field.kind === "lines") return [text.split("\n").filter((line) => line !== ""), ""];
  try {
    const value = JSON.parse(text);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return field.kind === "json" && !isObject ? [undefined, 'This must be a JSON object: {"name": value}'] : [value, ""];
  } catch {
    return [undefined, 'This is not JSON yet: {"name": value}'];
  }
}

function readNumber({ kind, min, max }, control) {
  if (control.value === "") return control.validity.badInput ? [undefined, "This must be a number"] : [undefined, ""];
  const value = Number(control.value);
  if (kind === "integer" && !Number.isInteger(value)) return [undefined, "This must be an integer"];
  if (value < (min ?? -Infinity)) return [undefined, `This must be at least ${min}`];
  if (value > (max ?? Infinity)) return [undefined, `This must be at most ${max}`];
  return [value, ""];
}
