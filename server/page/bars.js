// Labels and scores as bars.

import { el } from "./dom.js";

/** A list of `{label, score}`; scores from 0 to 1 are shares, others are told as numbers. */
export function bars(entries, { onclick } = {}) {
  const isShare = entries.every(({ score }) => score >= 0 && score <= 1);
  const greatest = Math.max(...entries.map(({ score }) => Math.abs(score)), 1e-9);
  return el("ul.bars", entries.map((entry, i) => bar(entry, i, isShare ? 1 : greatest, isShare, onclick)));
}

function bar(entry, i, whole, isShare, onclick) {
  const { label, score } = entry;
  const fill = el("span.bar-fill");
  fill.style.inlineSize = `${(100 * Math.abs(score)) / whole}%`;
  const value = isShare ? percent(score) : score.toFixed(3);
  const content = [
    el("span.bar-label", { dir: "auto" }, label),
    el("span.bar-value", value),
    el("span.bar-track", { "aria-hidden": "true" }, fill),
  ];
  const body = onclick ? el("button.bar", { onclick: () => onclick(entry) }, content) : el("div.bar", content);
  return el(i === 0 ? "li.best" : "li", body);
}

/** A share as people write it. */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 || value < 0.05 ? value.toFixed(value > 50 ? 1 : 2) : value.toFixed(1)} %`;
}
