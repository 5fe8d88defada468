// Texts with their entities in colour.

import { call } from "./api.js";
import { percent } from "./bars.js";
import { pieces } from "./characters.js";
import { el } from "./dom.js";
import { choice, integer, lines, MIN_SCORE, outputSettings } from "./settings_fields.js";
import { examples, textInput } from "./text_input.js";
import { Workbench } from "./workbench.js";

const SAMPLES = [
  ["Letter", "My name is Maria Jensen, 12 Oak Street, Portland. Write to maria.jensen@mail.org or call +1 503 555 0142."],
  ["中文", "张三和李四住在北京 🚀，Bob Smith 住在 London。"],
  ["العربية", "محمد علي يعيش في القاهرة مع Ahmed Hassan."],
];
const NUM_HUES = 12;
const MAX_ROWS = 500;

export class Tag extends Workbench {
  static task = "ner";
  static label = "Tag";
  static lead = "Find names, places and numbers in a text of any length.";
  static icon = "M4 4h8l8 8-8 8-8-8zM8.5 8.5v.1";
  static settings = outputSettings(
    choice("aggregation_strategy", "Aggregation", { choices: ["none", "simple", "first", "average", "max"].map((name) => [JSON.stringify(name), name]) }),
    MIN_SCORE,
    lines("ignore_labels", "Ignore labels", { hint: "One per line" }),
    integer("stride", "Stride", { min: 0, hint: "Overlap of windows in tokens, for long documents" }),
  );

  constructor(models) {
    super(models);
    this.text = textInput("ner", "Text", { rows: 4, otherwise: SAMPLES[0][1] });
    this.inputArea.append(this.text.element, examples(this.text.field, SAMPLES));
    this.text.field.addEventListener("input", () => this.#count());
    this.#count();
  }

  #count() {
    this.status.textContent = `${this.text.field.value.length.toLocaleString("en")} characters`;
  }

  isReady() {
    return this.text.field.value.trim() !== "";
  }

  request(side) {
    return { path: "/ner", body: { model: side.model, inputs: this.text.field.value, parameters: this.parametersOf(side) } };
  }

  async run(side, output, signal) {
    const start = performance.now();
    const { path, body } = this.request(side);
    const entities = await call(path, body, signal);
    output.replaceChildren(...tagged(body.inputs, entities));
    const count = `${entities.length} ${entities.length === 1 ? "entity" : "entities"}`;
    return `${count} · ${Math.round(performance.now() - start)} ms`;
  }
}

/** With their `label`, the `name` that `B-` and `I-` share, and a `hue` for each name, as long as there are enough. */
function named(entities) {
  const all = entities.map((entity) => {
    const label = entity.entity_group ?? entity.entity;
    return { ...entity, label, name: label.replace(/^[BIES]-/, "") };
  });
  const names = [...new Set(all.map(({ name }) => name))].sort();
  return all.map((entity) => ({ ...entity, hue: `hue-${names.indexOf(entity.name) % NUM_HUES}` }));
}

const readable = (name) => name.replaceAll("_", " ").toLowerCase();

function tagged(text, found) {
  const entities = named(found);
  const marks = el("div.tagged", paragraphs(text, entities));
  if (!entities.length) return [marks, el("p.soft", "No entities found.")];
  return [legend(entities, marks), marks, table(entities)];
}

/** A block for each line, so that only what is in view of a long document is laid out. */
function paragraphs(text, entities) {
  let line = el("p", { dir: "auto" });
  const lines = [line];
  for (const [piece, entity] of pieces(text, entities)) {
    if (entity) {
      line.append(mark(piece, entity));
      continue;
    }
    const [first, ...others] = piece.split("\n");
    line.append(first);
    for (const other of others) lines.push((line = el("p", { dir: "auto" }, other)));
  }
  return lines;
}

function mark(piece, { name, label, hue, score }) {
  const props = { "data-name": name, title: `${label}, ${percent(score)}` };
  return el(`mark.entity.${hue}`, props, el("bdi", piece), el("span.entity-label", readable(name)));
}

function legend(entities, marks) {
  const groups = new Map();
  for (const { name, hue } of entities) groups.set(name, { hue, count: (groups.get(name)?.count ?? 0) + 1 });
  const toggle = (event, name) => {
    const isOn = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", String(isOn));
    for (const node of marks.querySelectorAll(".entity")) if (node.dataset.name === name) node.classList.toggle("off", !isOn);
  };
  const chips = [...groups].map(([name, { hue, count }]) =>
    el(
      `button.chip.tag-chip.${hue}`,
      { "aria-pressed": "true", onclick: (event) => toggle(event, name) },
      readable(name),
      el("b", count),
    ),
  );
  return el("div.chips", { role: "group", "aria-label": "Shown labels" }, chips);
}

function table(entities) {
  const rows = entities.slice(0, MAX_ROWS).map((entity) =>
    el(
      "tr",
      {},
      el("td", { dir: "auto" }, entity.word),
      el("td", el(`span.dot.${entity.hue}`), entity.label),
      el("td.number", percent(entity.score)),
      el("td.number", `${entity.start}–${entity.end}`),
    ),
  );
  const head = el("tr", ["Text", "Label", "Score", "Characters"].map((name) => el("th", { scope: "col" }, name)));
  const content = el("table.plain", el("thead", head), el("tbody", rows));
  const more = entities.length > MAX_ROWS && el("p.hint", `Showing ${MAX_ROWS} of ${entities.length}.`);
  return el("details.more", el("summary", "Table"), el("div.table-scroll", { tabindex: 0, role: "group", "aria-label": "Entities" }, content), more);
}
