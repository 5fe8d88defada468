// Texts into other languages, and into shorter ones.

import { el, freshId } from "./dom.js";
import { load, save } from "./storage.js";
import { textInput, tick } from "./text_input.js";
import { Writing } from "./writing.js";

class Rewrite extends Writing {
  static task = "seq2seq";

  constructor(models, sample) {
    super(models);
    const kept = `split.${this.id}`;
    this.text = textInput(this.id, "Text", { rows: 6, otherwise: sample });
    this.isSplit = load(kept, false);
    this.inputArea.append(this.text.element);
    this.tools.append(tick("Sentence by sentence", this.isSplit, (isOn) => save(kept, (this.isSplit = isOn))));
    this.element.classList.add("boxes");
  }

  isReady() {
    return this.text.field.value.trim() !== "";
  }

  request(side) {
    const split = this.isSplit ? { split: "sentences" } : {};
    return { path: `/${this.id}`, body: { model: side.model, inputs: this.text.field.value, ...split, parameters: this.parametersOf(side), stream: true } };
  }
}

export class Summarize extends Rewrite {
  static id = "summarize";
  static label = "Summarize";
  static lead = "Summarize a text.";
  static icon = "M4 6h16M4 11h16M4 16h7M17 13v7M14 17l3 3 3-3";

  static fits(model) {
    return super.fits(model) && model.can_summarize;
  }

  constructor(models) {
    super(models, "The old mill by the river has stood empty for forty years. This spring a family from the city bought it, and now they grind flour again.");
  }
}

export class Translate extends Rewrite {
  static id = "translate";
  static label = "Translate";
  static lead = "Translate a text into another language.";
  static icon = "M4 6h9M8.5 4v2M11 6c-1 4-4 7-7 8M6 9c1 2 3 4 6 5M12 20l4-10 4 10M13.5 17h5";

  static fits(model) {
    return super.fits(model) && model.can_translate;
  }

  constructor(models) {
    super(models, "Where is the nearest train station?");
    this.pickers = { src_lang: languagePicker("From"), tgt_lang: languagePicker("To") };
    this.inputArea.prepend(el("div.row", Object.values(this.pickers).map(({ element }) => element)));
    this.sides.onChange(() => this.#offer());
    this.#offer();
  }

  #offer() {
    const { languages = [], default_src_lang, default_tgt_lang } = this.sides.facts(this.sides.active[0]);
    this.pickers.src_lang.offer(languages.filter(({ is_source }) => is_source), default_src_lang);
    this.pickers.tgt_lang.offer(languages.filter(({ is_target }) => is_target), default_tgt_lang);
  }

  parametersOf(side) {
    const chosen = Object.entries(this.pickers).map(([name, { select }]) => [name, select.value]);
    return { ...Object.fromEntries(chosen.filter(([, code]) => code)), ...super.parametersOf(side) };
  }
}

/** A language to choose, kept in the browser. */
function languagePicker(label) {
  const id = freshId("language");
  const kept = `language.${label}`;
  const select = el("select.control", { id, onchange: () => save(kept, select.value) });
  const element = el("div.field-inline", el("label", { for: id }, label), select);
  const offer = (languages, usual) => {
    element.hidden = languages.length === 0;
    select.replaceChildren(...languages.map(({ code, name }) => el("option", { value: code }, name)));
    const known = [load(kept, ""), usual].find((code) => languages.some((language) => language.code === code));
    if (known) select.value = known;
  };
  return { select, offer, element };
}
