// The languages to translate between: two lists, a button that swaps them, and which model has the pair.
// A language is known by its English name, since models have different codes for it.

import { button, el, freshId } from "./dom.js";
import { load, save } from "./storage.js";

/** Of a model that reads any language, or that writes only one and has no code for it. */
const ANY = { name: "Any language", code: undefined, short_codes: [] };

const DEFAULTS = { source: "default_src_lang", target: "default_tgt_lang" };

function offered(model, kind) {
  const found = model.languages.filter((language) => language[`is_${kind}`]);
  return found.length ? found : [ANY];
}

function find(model, kind, name) {
  return offered(model, kind).find((language) => language.name === name);
}

function targets(model, from) {
  const source = find(model, "source", from);
  if (!source) return [];
  const { language_pairs: pairs } = model;
  const has = ({ code }) => !pairs || pairs.some((pair) => pair.source === source.code && pair.target === code);
  return offered(model, "target").filter((target) => target.name !== from && has(target));
}

/** Whether the model translates between the languages of these names. One without languages takes any text. */
export function translates(model, [from, to]) {
  return !model.languages || targets(model, from).some(({ name }) => name === to);
}

/** The pair as parameters. */
export function codes(pair, model) {
  if (!model.languages) return {};
  const src_lang = find(model, "source", pair[0])?.code;
  const tgt_lang = find(model, "target", pair[1])?.code;
  return { ...(src_lang && { src_lang }), ...(tgt_lang && { tgt_lang }) };
}

/** The lists and the button. `onChange()` is called with each new pair, and `onSwap()` before it when the two change places. */
export class LanguageChoice {
  constructor(models, { onChange, onSwap }) {
    this.models = models.filter(({ languages }) => languages);
    this.onChange = onChange;
    this.onSwap = onSwap;
    this.pair = [load("language.From", ""), load("language.To", "")];
    this.from = picker("From", (name) => this.#choose([name, this.pair[1]]));
    this.to = picker("To", (name) => this.#choose([this.pair[0], name]));
    this.swapButton = button("swap", "Swap languages", () => this.#swap());
    this.element = el("div.languages", this.from.element, this.swapButton, this.to.element);
  }

  /** Keep the pair if `model` has it, else take the model's own. Nothing is shown for a model without languages. */
  follow(model) {
    for (const { element } of [this.from, this.to, { element: this.swapButton }]) element.hidden = !model.languages;
    if (!translates(model, this.pair)) this.pair = usual(model);
    this.#draw();
  }

  #choose([from, to]) {
    const known = this.#targets(from);
    this.pair = [from, known.includes(to) ? to : known[0]];
    save("language.From", this.pair[0]);
    save("language.To", this.pair[1]);
    this.#draw();
    this.onChange();
  }

  #swap() {
    this.onSwap();
    this.#choose([this.pair[1], this.pair[0]]);
  }

  #targets(from) {
    return names(this.models.flatMap((model) => targets(model, from)));
  }

  #draw() {
    const [from, to] = this.pair;
    this.from.offer(names(this.models.flatMap((model) => offered(model, "source"))), from);
    this.to.offer(this.#targets(from), to);
    this.swapButton.disabled = !this.models.some((model) => translates(model, [to, from]));
  }
}

function usual(model) {
  const of = (kind, known) => (known.find(({ code }) => code && code === model[DEFAULTS[kind]]) ?? known[0])?.name;
  const sources = offered(model, "source").filter(({ name }) => targets(model, name).length);
  const from = of("source", sources);
  return [from, of("target", targets(model, from))];
}

function names(languages) {
  return [...new Set(languages.map(({ name }) => name))].sort((a, b) => a.localeCompare(b, "en"));
}

function picker(label, onchoose) {
  const id = freshId("language");
  const select = el("select.control", { id, onchange: () => onchoose(select.value) });
  const offer = (known, chosen) => {
    select.replaceChildren(...known.map((name) => el("option", { value: name, selected: name === chosen }, name)));
  };
  return { offer, element: el("div.field-inline", el("label", { for: id }, label), select) };
}
