// Markdown inside of a paragraph: emphasis, code, links. Everything that is not one of these is text, HTML too.

import { el } from "./dom.js";

const TOKENS = new RegExp(
  [
    "(?<escape>\\\\[!-/:-@\\[-`{-~])",
    "(?<ticks>`+)(?<code>[^`]|[^`][^]{0,4000}?[^`])\\k<ticks>(?!`)",
    "!?\\[(?<label>[^\\]\\n]{1,500})\\]\\((?<target>[^()\\s]{1,2000}(?:\\([^()\\s]*\\)[^()\\s]*)*)\\)",
    "(?<bare>https?://[^\\s<>\"'`]+[^\\s<>\"'`.,;:!?)\\]])",
    "(?<strong>\\*\\*(?=\\S)[^]{1,2000}?\\S\\*\\*|(?<![\\p{L}\\p{N}])__(?=\\S)[^]{1,2000}?\\S__(?![\\p{L}\\p{N}]))",
    "(?<emphasis>\\*(?=[^\\s*])(?:[^*]{0,2000}?[^\\s*])\\*(?!\\*)|(?<![\\p{L}\\p{N}_])_(?=[^\\s_])(?:[^_]{0,2000}?[^\\s_])_(?![\\p{L}\\p{N}_]))",
    "(?<struck>~~(?=\\S)[^]{1,2000}?\\S~~)",
    "(?<wrap> {2,}\\n|\\\\\\n)",
  ].join("|"),
  "gu",
);
const MAX_DEPTH = 6;

const textNode = (text) => document.createTextNode(text);

/** The nodes of one piece of text. */
export function inline(text, depth = 0) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(TOKENS)) {
    if (match.index > end) nodes.push(textNode(text.slice(end, match.index)));
    nodes.push(nodeOf(match, depth));
    end = match.index + match[0].length;
  }
  if (end < text.length) nodes.push(textNode(text.slice(end)));
  return nodes;
}

/** The first place from `least` on, behind a space or a full stop, that no emphasis, code or link goes across. */
export function breakAfter(text, least) {
  const next = (from) => {
    const found = text.slice(from).search(/[\s。，]/u);
    return found < 0 ? text.length : from + found + 1;
  };
  let place = next(least);
  for (const match of text.matchAll(TOKENS)) {
    if (match.index >= place) break;
    if (match.index + match[0].length > place) place = next(match.index + match[0].length);
  }
  return place;
}

function nodeOf(match, depth) {
  const { escape, code, label, target, bare, strong, emphasis, struck, wrap } = match.groups;
  const inner = (text) => (depth < MAX_DEPTH ? inline(text, depth + 1) : [textNode(text)]);
  if (escape) return textNode(escape.slice(1));
  if (code) return el("code", code.replace(/^ (.+) $/, "$1"));
  if (target) return link(target, label.includes("://") ? [textNode(label)] : inner(label)) ?? textNode(match[0]);
  if (bare) return link(bare, [textNode(bare)]);
  if (strong) return el("strong", inner(strong.slice(2, -2)));
  if (emphasis) return el("em", inner(emphasis.slice(1, -1)));
  if (struck) return el("s", inner(struck.slice(2, -2)));
  if (wrap) return el("br");
  return textNode(match[0]);
}

/** A link that opens elsewhere; null unless it leads to the web or to a mailbox. Images are links: nothing is loaded. */
function link(target, children) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}
