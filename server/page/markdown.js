// Markdown that grows: each frame only the last blocks are looked at again, the ones before it stay as they are.

import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { parseBlocks } from "./markdown_blocks.js";
import { breakAfter, inline } from "./markdown_inline.js";

/** A longer paragraph, or piece of code, stands in chunks of about this, of which only the last one is laid out anew. */
const OPEN_CHARACTERS = 2000;

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
  let open = [];
  const update = ({ text }) => {
    if (!text.startsWith(frozen)) return false;
    for (const one of open) one.remove();
    while (text.length - frozen.length > 2 * OPEN_CHARACTERS) {
      const rest = text.slice(frozen.length, frozen.length + 2 * OPEN_CHARACTERS);
      const piece = rest.slice(0, breakAfter(rest, OPEN_CHARACTERS));
      node.append(el("span.chunk", inline(piece)));
      frozen += piece;
    }
    open = inline(text.slice(frozen.length));
    node.append(...open);
    return true;
  };
  update(block);
  return { node, update };
}

function code(block) {
  let text = "";
  const content = el("code");
  const language = el("span.code-language", block.language || "text");
  const head = el("div.code-head", language, copyButton(() => text));
  const node = el("div.code-block", { dir: "ltr" }, head, el("pre", { tabindex: 0 }, content));
  const update = (next) => {
    if ((next.language || "text") !== language.textContent || !next.text.startsWith(text)) return false;
    appendLines(content, next.text.slice(text.length));
    text = next.text;
    return true;
  };
  update(block);
  return { node, update };
}

/** Append to the last chunk, up to a line's end where it is full: only the last one is laid out anew. */
function appendLines(content, text) {
  for (const line of text.split(/(?<=\n)/)) {
    const last = content.lastChild;
    if (last && (last.textContent.length < OPEN_CHARACTERS || !last.textContent.endsWith("\n"))) last.firstChild.appendData(line);
    else content.append(el("span.chunk", line));
  }
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
