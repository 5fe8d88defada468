// Markdown that grows: each frame only the last blocks are looked at again, the ones before it stay as they are.

import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { parseBlocks } from "./markdown_blocks.js";
import { inline } from "./markdown_inline.js";

/** How much of an unfinished paragraph is still laid out anew; what stands before is frozen at a sentence's end. */
const OPEN_CHARACTERS = 1500;

/** A view of one text in `container`. `update(text)` takes the whole text so far. */
export class MarkdownView {
  #container;
  #views = [];
  #start = 0;
  #numFixed = 0;

  constructor(container) {
    this.#container = container;
  }

  /** A text that does not begin with what was shown before is shown from the beginning. */
  update(text) {
    if (!text.startsWith(this.text ?? "")) {
      this.#container.replaceChildren();
      this.#views = [];
      this.#start = this.#numFixed = 0;
    }
    this.text = text;
    const blocks = parseBlocks(text.slice(this.#start));
    patch(this.#container, this.#views, this.#numFixed, blocks);
    // Two stay open: what looks like a paragraph after a list may yet become the list's next item.
    if (blocks.length > 2) this.#start += blocks.at(-2).start;
    this.#numFixed = this.#views.length - Math.min(blocks.length, 2);
  }
}

/** Make `views` from number `from` on show `blocks`. */
function patch(container, views, from, blocks) {
  blocks.forEach((block, i) => {
    const view = views[from + i];
    if (view?.raw === block.raw) return;
    if (view?.type === block.type && view.update(block)) {
      view.raw = block.raw;
      return;
    }
    const fresh = viewOf(block);
    Object.assign(fresh, { type: block.type, raw: block.raw });
    if (view) view.node.replaceWith(fresh.node);
    else container.append(fresh.node);
    views[from + i] = fresh;
  });
  for (const view of views.splice(from + blocks.length)) view.node.remove();
}

const VIEWS = { paragraph, heading, code, list, item, quote, table, rule: () => fixed(el("hr")) };

function viewOf(block) {
  return VIEWS[block.type](block);
}

/** A view that cannot change: another one takes its place. */
function fixed(node) {
  return { node, update: () => false };
}

function heading({ level, text }) {
  // Within a page that has its own headings, an answer's begin at the third level.
  return fixed(el(`h${Math.min(level + 2, 6)}.level-${level}`, { dir: "auto" }, inline(text)));
}

function paragraph(block) {
  const node = el("p", { dir: "auto" });
  let frozen = "";
  let numFrozen = 0;
  const update = ({ text }) => {
    if (!text.startsWith(frozen)) return false;
    while (node.childNodes.length > numFrozen) node.lastChild.remove();
    const cut = safeCut(text, frozen.length);
    if (cut > frozen.length) {
      node.append(...inline(text.slice(frozen.length, cut)));
      frozen = text.slice(0, cut);
      numFrozen = node.childNodes.length;
    }
    node.append(...inline(text.slice(cut)));
    return true;
  };
  update(block);
  return { node, update };
}

/** Up to where the paragraph may be frozen: a space outside of everything that is still open. */
function safeCut(text, from) {
  if (text.length - from <= 2 * OPEN_CHARACTERS) return from;
  const cut = text.lastIndexOf(" ", text.length - OPEN_CHARACTERS);
  return cut > from && !/[*_`~[]/.test(text.slice(from, cut)) ? cut : from;
}

function code(block) {
  const content = document.createTextNode("");
  const language = el("span.code-language", block.language || "text");
  const head = el("div.code-head", language, copyButton(() => content.data));
  const node = el("div.code-block", { dir: "ltr" }, head, el("pre", { tabindex: 0 }, el("code", content)));
  const update = (next) => {
    if ((next.language || "text") !== language.textContent || !next.text.startsWith(content.data)) return false;
    content.appendData(next.text.slice(content.data.length));
    return true;
  };
  update(block);
  return { node, update };
}

/** A view of what has blocks of its own. */
function nested(node, block, isSame = () => true) {
  const views = [];
  const update = (next) => {
    if (!isSame(next)) return false;
    patch(node, views, 0, next.blocks);
    return true;
  };
  update(block);
  return { node, update };
}

function list(block) {
  const props = block.isOrdered ? { start: block.first } : {};
  const isSame = (next) => next.isOrdered === block.isOrdered && (!next.isOrdered || next.first === block.first);
  return nested(el(block.isOrdered ? "ol" : "ul", props), block, isSame);
}

function item(block) {
  return nested(el("li", { dir: "auto" }), block);
}

function quote(block) {
  return nested(el("blockquote", { dir: "auto" }), block);
}

function table({ head, sides, rows }) {
  const cell = (name) => (text, i) => el(`${name}.align-${sides[i] ?? "start"}`, { dir: "auto" }, inline(text));
  const body = rows.map((row) => el("tr", row.map(cell("td"))));
  const content = el("table", el("thead", el("tr", head.map(cell("th")))), el("tbody", body));
  return fixed(el("div.table-scroll", { tabindex: 0, role: "group", "aria-label": "Table" }, content));
}
