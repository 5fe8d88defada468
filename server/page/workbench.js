// What the tabs beside the chat have in common: an input, a button, and a result for each side.

import { codeButton } from "./code_samples.js";
import { announce, el, textButton } from "./dom.js";
import { errorCard } from "./errors.js";
import { parameters } from "./settings_form.js";
import { Sides } from "./sides.js";
import { onCtrlEnter } from "./typing.js";

/**
 * A tab. A subclass states its `task` (and an `id` where several have it), `label`, `lead` (a sentence below the label), `icon` (the line that draws it) and
 * `settings` (groups of fields), and fills `inputArea`. It says what is sent and shown: `request(side)` gives {path, body},
 * `run(side, output, signal)` fills the element `output`.
 */
export class Workbench {
  running = null;

  /** Whether the tab is for the model. */
  static fits(model) {
    return model.task === this.task;
  }

  /** The tab over the models that fit, or null where none does. `info` is what `/info` says. */
  static of(info) {
    const models = info.models.filter((model) => this.fits(model));
    return models.length ? new this(models, info) : null;
  }

  constructor(models) {
    const { task, id = task, label, lead, icon, settings } = this.constructor;
    this.id = id;
    this.label = label;
    this.icon = icon;
    this.sides = new Sides(id, settings, models);
    this.runButton = textButton("send", "Run", () => this.start(), { class: "button primary" });
    this.stopButton = textButton("stop", "Stop", () => this.stop(), { class: "button", hidden: true });
    this.results = el("div.results");
    this.tools = el("div.row.tools");
    this.inputArea = el("div.input-area");
    this.status = el("span.hint");
    this.problem = el("span.field-error", { role: "alert" });
    this.element = el(
      "div.workbench",
      el(
        "div.workbench-content",
        el("header.workbench-head", el("h1", label), el("p.soft", lead)),
        el(
          "section.card",
          { "aria-label": "Input" },
          this.inputArea,
          el("div.row.card-foot", this.tools, this.problem, this.status, codeButton(() => this.sample()), this.stopButton, this.runButton),
        ),
        this.results,
      ),
    );
    this.panel = this.sides.panel;
    onCtrlEnter(this.element, () => this.start());
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
  }

  show(mayFocus) {
    if (mayFocus) this.inputArea.querySelector("textarea, input, select")?.focus({ preventScroll: true });
  }

  stop() {
    this.running?.abort();
  }

  parametersOf(side) {
    return parameters(side.values);
  }

  sample() {
    return this.request(this.sides.active[0]);
  }

  async start() {
    this.stop();
    this.sides.clearComplaints();
    const { problem } = this.sides;
    this.problem.textContent = problem;
    if (problem) return;
    if (!this.isReady()) {
      this.show(true);
      return;
    }
    const running = new AbortController();
    this.#setRunning(running);
    const sides = this.sides.active;
    const outputs = sides.map((side) => this.#output(side, sides.length > 1));
    this.results.classList.toggle("two", sides.length > 1);
    this.results.replaceChildren(...outputs.map(({ element }) => element));
    await Promise.all(sides.map((side, i) => this.#runOne(side, outputs[i], running.signal)));
    if (this.running !== running) return;
    this.#setRunning(null);
    announce("The result is ready.");
  }

  isReady() {
    return true;
  }

  #output(side, isOneOfTwo) {
    const title = isOneOfTwo && el("header.answer-title", el("span.side-name", side.name), side.model);
    const body = el("div.result-body");
    const note = el("footer.note");
    const element = el("section.card.result", { "aria-label": `Result of ${side.model}`, "aria-busy": "true" }, title, body, note);
    return { element, body, note };
  }

  async #runOne(side, output, signal) {
    const start = performance.now();
    output.body.replaceChildren(el("p.waiting", "Working…"));
    try {
      const note = await this.run(side, output.body, signal, (text) => (output.note.textContent = text));
      output.note.textContent = note ?? `${Math.round(performance.now() - start)} ms`;
    } catch (error) {
      this.#fail(error, side, output);
    } finally {
      output.element.setAttribute("aria-busy", "false");
    }
  }

  #fail(error, side, output) {
    output.body.querySelector(".waiting")?.remove();
    if (error.name === "AbortError") {
      output.note.textContent = "stopped";
      return;
    }
    output.body.append(errorCard(error, () => this.start(), this.hints));
    output.note.textContent = "";
    this.sides.point(side, error);
  }

  #setRunning(running) {
    this.running = running;
    this.stopButton.hidden = running === null;
    this.runButton.hidden = running !== null;
  }
}
