// A text as its tokens: how likely each was is its colour, what else was likely is told on pointing at it.

import { bars, percent } from "./bars.js";
import { el } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1];

export class TokenText {
  #nodes = [];
  #events = new Map();
  #active = -1;

  constructor() {
    this.card = el("div.token-card", { role: "status", hidden: true });
    this.text = el("div.tokens", {
      tabindex: 0,
      dir: "auto",
      role: "group",
      "aria-label": "Tokens with their probabilities; arrow keys go from one to the next",
      onpointerover: (event) => this.#point(event.target.closest(".token")),
      onpointerleave: () => this.#hide(),
      onclick: (event) => this.#point(event.target.closest(".token")),
      onkeydown: (event) => this.#step(event),
      onblur: () => this.#hide(),
    });
    this.element = el("div.token-text", this.text, this.card);
    new ResizeObserver(() => this.card.hidden || this.#place(this.#nodes[this.#active])).observe(this.text);
  }

  /** Tokens whose text is not complete stand together with the one that completes it. */
  add(event) {
    if (event.token.special && event.token.text === "") return;
    const last = this.#nodes.at(-1);
    if (last && last.textContent === "") {
      this.#events.get(last).push(event);
      last.textContent += event.token.text;
      last.className = classOf(this.#events.get(last));
      return;
    }
    const node = el("span", { class: classOf([event]) }, event.token.text);
    this.#events.set(node, [event]);
    this.#nodes.push(node);
    this.text.append(node);
  }

  #step(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape" && !this.card.hidden) {
      event.stopPropagation();
      this.#hide();
    }
    if (!way) return;
    event.preventDefault();
    const number = Math.min(Math.max(this.#active + way, 0), this.#nodes.length - 1);
    this.#point(this.#nodes[number]);
  }

  #point(node) {
    if (!node || !this.#events.has(node)) return;
    this.#nodes[this.#active]?.classList.remove("active");
    this.#active = this.#nodes.indexOf(node);
    node.classList.add("active");
    this.card.replaceChildren(...this.#events.get(node).slice(0, 3).map(told));
    this.card.hidden = false;
    this.#place(node);
  }

  #place(node) {
    const around = this.element.getBoundingClientRect();
    const box = node.getClientRects()[0] ?? node.getBoundingClientRect();
    const left = Math.min(Math.max(box.left - around.left, 0), Math.max(around.width - this.card.offsetWidth, 0));
    this.card.style.left = `${left}px`;
    this.card.style.top = `${box.bottom - around.top + 6}px`;
  }

  #hide() {
    this.#nodes[this.#active]?.classList.remove("active");
    this.card.hidden = true;
  }
}

function probability(event) {
  return event.token.logprob === null ? null : Math.exp(event.token.logprob);
}

function classOf(events) {
  const shares = events.map(probability).filter((share) => share !== null);
  if (!shares.length) return "token";
  const least = Math.min(...shares);
  const level = LEVELS.findIndex((limit) => least >= limit);
  return `token level-${level < 0 ? LEVELS.length : level}`;
}

/** A token's text, with what cannot be seen made visible. */
function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function told(event) {
  const share = probability(event);
  const top = (event.top_tokens ?? []).map(({ text, logprob }) => ({ label: visible(text), score: Math.min(Math.exp(logprob), 1) }));
  const head = el("p.token-head", el("code", visible(event.token.text)), share === null ? "" : percent(share));
  return el("div", head, top.length > 0 && bars(top));
}
