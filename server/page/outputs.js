// The outputs of one completion while they grow: one, several samples, or the beams of a search.

import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { perFrame } from "./frames.js";
import { Pace, summary } from "./generation.js";
import { TokenText } from "./tokens.js";

export class Outputs {
  #cards = new Map();

  /** `prompt` stands before each output, `body` is the request's, `say(text)` shows a line below. */
  constructor(container, prompt, body, say) {
    this.container = container;
    this.pace = new Pace(say);
    this.prompt = prompt;
    this.numBeams = body.parameters.num_beams ?? 1;
    this.withTokens = Boolean(body.parameters.top_n_tokens);
    this.notice = el("p.waiting", { role: "status" }, this.numBeams > 1 ? `${this.numBeams} beams search…` : "Working…");
    container.replaceChildren(this.notice);
    this.drawing = perFrame(() => this.#draw());
  }

  /** The first output. */
  get text() {
    return this.#cards.get(0)?.output.text ?? "";
  }

  add(output, event) {
    this.pace.add();
    if (!this.#cards.has(output.sequence)) this.#begin(output);
    this.#cards.get(output.sequence).fresh.push(event);
    this.drawing.ask();
  }

  tell(text) {
    this.notice.textContent = text;
    this.notice.hidden = text === "";
  }

  /** All have ended, or were stopped: the best first where they have scores, and told from where on they differ. */
  end() {
    this.drawing.now();
    this.notice.hidden = true;
    const cards = [...this.#cards.values()];
    for (const card of cards) card.finish();
    if (this.numBeams > 1 && cards.length > 1 && !this.withTokens) showDifference(cards);
  }

  #begin(output) {
    if (this.numBeams === 1) this.notice.hidden = true;
    else this.notice.textContent = `${this.numBeams} beams search; they agree on this so far…`;
    const isMany = this.#cards.size > 0;
    const card = new OutputCard(output, this.prompt, this.withTokens);
    this.#cards.set(output.sequence, card);
    this.container.append(card.element);
    if (isMany) for (const { element } of this.#cards.values()) element.classList.add("one-of-many");
  }

  #draw() {
    for (const card of this.#cards.values()) card.draw();
  }
}

class OutputCard {
  fresh = [];

  constructor(output, prompt, withTokens) {
    this.output = output;
    this.tokens = withTokens ? new TokenText() : null;
    this.node = document.createTextNode("");
    this.written = el("span.written", this.tokens ? null : this.node);
    this.title = el("header.output-title", el("b", output.sequence + 1));
    const text = this.tokens ? [el("p.prompt", { dir: "auto" }, prompt), this.tokens.element] : el("p.completion", { dir: "auto" }, el("span.prompt", prompt), this.written);
    this.note = el("span.note");
    this.element = el("article.output", this.title, text, el("footer.answer-footer", this.note, copyButton(() => this.output.text)));
  }

  draw() {
    const events = this.fresh.splice(0);
    if (this.tokens) for (const event of events) this.tokens.add(event);
    else this.node.appendData(this.output.text.slice(this.node.length));
  }

  finish() {
    const { details } = this.output;
    if (!details) return;
    const score = details.score == null ? [] : [`score ${details.score.toFixed(3)}`];
    this.note.textContent = [...score, summary(details)].join(" · ");
  }
}

/** What all have in common steps back. */
function showDifference(cards) {
  const texts = cards.map((card) => card.output.text);
  let length = 0;
  while (length < texts[0].length && texts.every((text) => text[length] === texts[0][length])) length += 1;
  // Not inside of a word, nor of a character.
  const common = texts[0].slice(0, length).search(/\S*$/);
  for (const { output, written } of cards) {
    written.replaceChildren(el("span.common", output.text.slice(0, common)), output.text.slice(common));
  }
}
