// Markdown's blocks: lines to a small tree. Nothing here knows the document; a half-written text is read like a whole one.
//
// A block is {type, raw, ...}: `raw` is its source, by which a view knows whether it has changed.

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 8;

/** The blocks of `source`, each with the `start` of its first line. */
export function parseBlocks(source, depth = 0) {
  const lines = source.split("\n");
  const blocks = [];
  let offset = 0;
  let i = 0;
  while (i < lines.length) {
    if (lines[i].trim() === "") {
      offset += lines[i].length + 1;
      i += 1;
      continue;
    }
    const [block, next] = readBlock(lines, i, depth);
    block.raw = lines.slice(i, next).join("\n");
    block.start = offset;
    blocks.push(block);
    offset += block.raw.length + 1;
    i = next;
  }
  return blocks;
}

function readBlock(lines, i, depth) {
  const line = lines[i];
  const fence = FENCE.exec(line);
  if (fence) return readCode(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: heading[2] }, i + 1];
  if (RULE.test(line)) return [{ type: "rule" }, i + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, i, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, i, depth);
  if (isTable(lines, i)) return readTable(lines, i);
  return readParagraph(lines, i);
}

function readCode(lines, i, [, indent, fence, language]) {
  const isEnd = (line) => line.trim().startsWith(fence) && /^(`+|~+)$/.test(line.trim());
  let end = i + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const content = lines.slice(i + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent.length}}`), ""));
  const isClosed = end < lines.length;
  return [{ type: "code", language, text: content.join("\n"), isClosed }, isClosed ? end + 1 : end];
}

function readQuote(lines, i, depth) {
  let end = i;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(i, end).map((line) => line.replace(QUOTE, ""));
  return [{ type: "quote", blocks: parseBlocks(inner.join("\n"), depth + 1) }, end];
}

function readList(lines, i, depth) {
  const isOrdered = /\d/.test(ITEM.exec(lines[i])[2]);
  const first = Number.parseInt(ITEM.exec(lines[i])[2], 10);
  const items = [];
  let end = i;
  while (end < lines.length) {
    const marker = ITEM.exec(lines[end]);
    if (!marker || /\d/.test(marker[2]) !== isOrdered || RULE.test(lines[end])) break;
    const [item, next] = readItem(lines, end, marker, depth);
    items.push(item);
    end = next;
  }
  return [{ type: "list", isOrdered, first, blocks: items }, end];
}

function readItem(lines, i, marker, depth) {
  const indent = Math.min(marker[0].length, marker[1].length + marker[2].length + 4);
  const inner = [lines[i].slice(marker[0].length)];
  let end = i + 1;
  while (end < lines.length && belongsToItem(lines, end, indent)) {
    inner.push(lines[end].slice(Math.min(indent, lines[end].search(/\S|$/))));
    end += 1;
  }
  return [{ type: "item", raw: lines.slice(i, end).join("\n"), blocks: parseBlocks(inner.join("\n"), depth + 1) }, end];
}

function belongsToItem(lines, i, indent) {
  const width = lines[i].search(/\S|$/);
  if (lines[i].trim() === "") {
    const next = lines.slice(i + 1, i + 3).find((line) => line.trim() !== "");
    return next !== undefined && (next.search(/\S/) >= Math.min(indent, 2) || ITEM.test(next));
  }
  if (width >= Math.min(indent, 2)) return true;
  // A line that goes on without indent belongs to the paragraph above it.
  return lines[i - 1].trim() !== "" && !beginsBlock(lines[i]);
}

function beginsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function isTable(lines, i) {
  return lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && TABLE_RULE.test(lines[i + 1]);
}

function readTable(lines, i) {
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const sides = cells(lines[i + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  const rows = lines.slice(i + 2, end).map(cells);
  return [{ type: "table", head: cells(lines[i]), sides, rows }, end];
}

function cells(line) {
  const trimmed = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return trimmed.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readParagraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && lines[end].trim() !== "" && !beginsBlock(lines[end]) && !isTable(lines, end)) end += 1;
  return [{ type: "paragraph", text: lines.slice(i, end).join("\n").trim() }, end];
}
