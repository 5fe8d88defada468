// Texts with their entities in colour.

import { call } from "./api.js";
import { percent } from "./bars.js";
import { pieces } from "./characters.js";
import { el } from "./dom.js";
import { examples, textInput } from "./text_input.js";
import { Workbench } from "./workbench.js";

const SAMPLES = [
  ["Letter", "My name is Maria Jensen, 12 Oak Street, Portland. Write to maria.jensen@mail.org or call +1 503 555 0142."],
  ["\u4e2d\u6587", "\u5f20\u4e09\u548c\u674e\u56db\u4f4f\u5728\u5317\u4eac \ud83d\ude80\uff0cBob Smith \u4f4f\u5728 London\u3002"],
  ["\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0645\u062d\u0645\u062f \u0639\u0644\u064a \u064a\u0639\u064a\u0634 \u0641\u064a \u0627\u0644\u0642\u0627\u0647\u0631\u0629 \u0645\u0639 Ahmed Hassan."],
];
const NUM_HUES = 12;
const MAX_ROWS = 500;

export class Tag extends Workbench {
  constructor(models) {
    super("ner", "ner", models, { label: "Tag", lead: "Names, places, numbers: what stands where in a text of any length." });
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
    return `${count} \u00b7 ${Math.round(performance.now() - start)} ms`;
  }
}

const labelOf = (entity) => entity.entity_group ?? entity.entity;
const plainLabel = (label) => label.replace(/^[BIES]-/, "");
const readable = (label) => plainLabel(label).replaceAll("_", " ").toLowerCase();

/** A colour for each label, the same for `B-` and `I-`; labels of one text differ for as long as there are colours. */
function huesOf(entities) {
  const names = [...new Set(entities.map((entity) => plainLabel(labelOf(entity))))].sort();
  return new Map(names.map((name, i) => [name, i % NUM_HUES]));
}

function tagged(text, entities) {
  const hues = huesOf(entities);
  const marks = el("div.tagged", paragraphs(text, entities, hues));
  if (!entities.length) return [marks, el("p.soft", "Nothing was found in this text.")];
  return [legend(entities, hues, marks), marks, table(entities, hues)];
}

/** A block for each line, so that only what is in view of a long document is laid out. */
function paragraphs(text, entities, hues) {
  let line = el("p", { dir: "auto" });
  const lines = [line];
  for (const [piece, entity] of pieces(text, entities)) {
    if (entity) {
      line.append(mark(piece, entity, hues));
      continue;
    }
    const [first, ...others] = piece.split("\n");
    line.append(first);
    for (const other of others) lines.push((line = el("p", { dir: "auto" }, other)));
  }
  return lines;
}

function mark(piece, entity, hues) {
  const label = labelOf(entity);
  const props = { "data-label": plainLabel(label), title: `${label}, ${percent(entity.score)}` };
  return el(`mark.entity.hue-${hues.get(plainLabel(label))}`, props, el("bdi", piece), el("span.entity-label", readable(label)));
}

function legend(entities, hues, marks) {
  const counts = new Map();
  for (const entity of entities) counts.set(plainLabel(labelOf(entity)), (counts.get(plainLabel(labelOf(entity))) ?? 0) + 1);
  const toggle = (event, name) => {
    const isOn = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", String(isOn));
    for (const node of marks.querySelectorAll(".entity")) if (node.dataset.label === name) node.classList.toggle("off", !isOn);
  };
  const chips = [...counts].map(([name, count]) =>
    el(
      `button.chip.tag-chip.hue-${hues.get(name)}`,
      { "aria-pressed": "true", onclick: (event) => toggle(event, name) },
      readable(name),
      el("b", count),
    ),
  );
  return el("div.chips", { role: "group", "aria-label": "Shown labels" }, chips);
}

function table(entities, hues) {
  const rows = entities.slice(0, MAX_ROWS).map((entity) =>
    el(
      "tr",
      {},
      el("td", { dir: "auto" }, entity.word),
      el("td", el(`span.dot.hue-${hues.get(plainLabel(labelOf(entity)))}`), labelOf(entity)),
      el("td.number", percent(entity.score)),
      el("td.number", `${entity.start}\u2013${entity.end}`),
    ),
  );
  const head = el("tr", ["Text", "Label", "Score", "Characters"].map((name) => el("th", { scope: "col" }, name)));
  const content = el("table.plain", el("thead", head), el("tbody", rows));
  const more = entities.length > MAX_ROWS && el("p.hint", `The first ${MAX_ROWS} of ${entities.length}.`);
  return el("details.more", el("summary", "As a table"), el("div.table-scroll", { tabindex: 0, role: "group", "aria-label": "Entities" }, content), more);
}
