// One model with its settings, or two of them side by side; and the panel in which they are chosen.

import { el, freshId, quietButton } from "./dom.js";
import { SettingsForm } from "./settings_form.js";
import { load, save } from "./storage.js";

const NAMES = ["A", "B"];
const SIZES = [[1e9, "B"], [1e6, "M"], [1e3, "K"]];

/** What is asked of the models of one tab, kept in the browser. */
export class Sides {
  #listeners = [];
  #edited = 0;

  /** `settings` are the groups of the form. */
  constructor(id, settings, models) {
    this.id = id;
    this.settings = settings;
    this.models = models;
    const kept = load(`sides.${id}`, {});
    this.isComparing = Boolean(kept.isComparing);
    this.all = NAMES.map((name, i) => ({ name, ...this.#sound(kept.all?.[i], i) }));
    this.panel = el("div.panel-content");
    this.#draw();
  }

  /** The sides that are asked: one, or two. */
  get active() {
    return this.isComparing ? this.all : this.all.slice(0, 1);
  }

  /** `listener(side)` is called on each change, with the side whose settings are shown. */
  onChange(listener) {
    this.#listeners.push(listener);
  }

  facts(side) {
    return this.models.find((model) => model.name === side.model) ?? this.models[0];
  }

  /** What keeps the settings from being sent, in plain words. */
  get problem() {
    return this.form.isValid ? "" : "A setting cannot be read: see the settings.";
  }

  /** Show a refusal at the field that it names. */
  point(side, error) {
    const number = this.all.indexOf(side);
    if (!error.param || number < 0) return;
    if (number !== this.#edited) this.#edit(number);
    this.form.point(error.param, error.message);
  }

  clearComplaints() {
    this.form.clearComplaints();
  }

  /** Give the side another model. Listeners are not called. */
  use(side, model) {
    side.model = model;
    this.#save();
    this.#draw();
  }

  compare(isOn) {
    this.isComparing = isOn;
    this.#edited = 0;
    this.#changed();
    this.#draw();
  }

  #sound(kept, i) {
    const names = this.models.map((model) => model.name);
    const other = this.models[Math.min(i, this.models.length - 1)].name;
    return { model: names.includes(kept?.model) ? kept.model : other, values: { ...kept?.values } };
  }

  #save() {
    save(`sides.${this.id}`, { isComparing: this.isComparing, all: this.all });
  }

  #changed() {
    this.#save();
    for (const listener of this.#listeners) listener(this.all[this.#edited]);
  }

  #edit(number) {
    this.#edited = number;
    this.#draw();
  }

  #draw() {
    const side = this.all[this.#edited];
    this.form = new SettingsForm(this.settings, side.values, {
      onChange: () => this.#changed(),
      placeholder: (name) => this.#placeholder(side, name),
    });
    this.panel.replaceChildren(
      this.#compareSwitch(),
      ...(this.isComparing ? [this.#sideButtons()] : []),
      this.#modelPicker(side),
      this.form.element,
      quietButton("redo", "Reset to defaults", () => this.#reset(side)),
    );
  }

  #reset(side) {
    for (const name of Object.keys(side.values)) delete side.values[name];
    this.#changed();
    this.#draw();
  }

  #compareSwitch() {
    const id = freshId("compare");
    const onchange = (event) => {
      this.compare(event.target.checked);
      this.panel.querySelector(".switch").focus();
    };
    const input = el("input.switch", { type: "checkbox", role: "switch", id, checked: this.isComparing, onchange });
    const text = el("span", "Compare two", el("small", "models or settings, side by side"));
    return el("label.switch-row", { for: id }, text, input);
  }

  #sideButtons() {
    const one = (name, i) =>
      el("button", { "aria-pressed": String(i === this.#edited), onclick: () => this.#edit(i) }, `Settings of ${name}`);
    return el("div.segments", { role: "group", "aria-label": "Side" }, NAMES.map(one));
  }

  #modelPicker(side) {
    const id = freshId("model");
    const onchange = (event) => {
      side.model = event.target.value;
      this.#changed();
      this.#draw();
      document.getElementById(this.panel.querySelector("select").id).focus();
    };
    const options = this.models.map((model) => el("option", { value: model.name, selected: model.name === side.model }, model.name));
    return el(
      "div.model-picker",
      el("label", { for: id }, this.models.length > 1 ? `Model · ${this.models.length} served` : "Model"),
      el("select.control", { id, onchange }, options),
      el("p.hint", describe(this.facts(side))),
    );
  }

  #placeholder(side, name) {
    const facts = this.facts(side);
    const value = facts.generation_config?.[name] ?? facts[`default_${name}`] ?? facts[name] ?? "";
    return typeof value === "object" ? "" : String(value);
  }
}

/** A model's size and place, in one line. */
function describe(model) {
  const [size, unit] = SIZES.find(([size]) => model.num_parameters >= size) ?? [1, ""];
  const parts = [
    model.num_parameters && `${(model.num_parameters / size).toFixed(unit === "B" ? 1 : 0)} ${unit} parameters`,
    [model.dtype, model.device].filter(Boolean).join(" on "),
    model.max_total_tokens ? `${model.max_total_tokens.toLocaleString("en")} tokens` : null,
    model.labels && `${model.labels.length} labels`,
  ];
  return parts.filter(Boolean).join(" · ");
}
