// Texts into other languages, and into shorter ones.

import { codes, LanguageChoice, translates } from "./languages.js";
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

  get hints() {
    const advice = this.isSplit ? "Shorten the longest sentence." : "Choose “Sentence by sentence”, or shorten the text.";
    return { context_length_exceeded: advice };
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
    this.languages = new LanguageChoice(models, { onChange: () => this.#useModels(), onSwap: () => this.#swapTexts() });
    this.inputArea.prepend(this.languages.element);
    this.sides.onChange((side) => this.#follow(side));
    this.#follow(this.sides.active[0]);
  }

  #follow(side) {
    this.languages.follow(this.sides.facts(side));
    this.#useModels();
  }

  /** Each side gets a model that has the languages, where its own has not. */
  #useModels() {
    const fits = (model) => translates(model, this.languages.pair);
    const found = this.sides.models.find((model) => model.languages && fits(model));
    for (const side of this.sides.active) {
      if (!fits(this.sides.facts(side))) this.sides.use(side, found.name);
    }
  }

  /** The translation is the next text, if there is one. */
  #swapTexts() {
    this.stop();
    const { text = "" } = this.written ?? {};
    this.written = null;
    this.results.replaceChildren();
    if (text.trim()) this.text.set(text);
  }

  parametersOf(side) {
    return { ...codes(this.languages.pair, this.sides.facts(side)), ...super.parametersOf(side) };
  }
}
