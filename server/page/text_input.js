// A large text field with its label, kept in the browser, and examples to begin with.

import { el, freshId } from "./dom.js";
import { load, save } from "./storage.js";
import { growing } from "./typing.js";

const KEPT_CHARACTERS = 100_000;

/** `{field, set(text), element}`; the field holds what it held when the page was last open. */
export function textInput(name, label, { rows = 5, placeholder = "", otherwise = "" } = {}) {
  const id = freshId("text");
  const field = growing(el("textarea.control.big", { id, rows, placeholder, dir: "auto", value: load(`text.${name}`, otherwise) }));
  field.addEventListener("input", () => field.value.length <= KEPT_CHARACTERS && save(`text.${name}`, field.value));
  const set = (text) => {
    field.value = text;
    field.dispatchEvent(new Event("input"));
  };
  return { field, set, element: el("div.field-block", el("label", { for: id }, label), field) };
}

/** Buttons that fill the field. */
export function examples(field, entries) {
  const fill = (text) => {
    field.value = text;
    field.dispatchEvent(new Event("input"));
    field.focus();
  };
  const chips = entries.map(([label, text]) => el("button.chip", { onclick: () => fill(text) }, label));
  return el("div.chips", { role: "group", "aria-label": "Examples" }, chips);
}

/** A box to tick, with its label; `onchange(isTicked)`. */
export function tick(label, isTicked, onchange) {
  const id = freshId("tick");
  const input = el("input", { type: "checkbox", id, checked: isTicked, onchange: () => onchange(input.checked) });
  return el("label.tick", { for: id }, input, label);
}
