// Links to what the server says about itself. A link cannot carry a key: with one, the page asks and shows.

import { call, callText } from "./api.js";
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";
import { errorCard } from "./errors.js";
import { apiKey } from "./storage.js";

const READERS = {
  docs: async () => routes(await call("/openapi.json")),
  info: async () => JSON.stringify(await call("/info"), null, 2),
  metrics: () => callText("/metrics"),
};

/** A link to one of `READERS`. */
export function serverLink(path, label) {
  const onclick = (event) => {
    if (!apiKey.get()) return;
    event.preventDefault();
    show(path, label);
  };
  return el("a", { href: path, onclick }, label);
}

async function show(path, label) {
  const text = el("pre.sample", { tabindex: 0 }, "…");
  openDialog(label, text, { isWide: true });
  try {
    text.textContent = await READERS[path]();
  } catch (error) {
    text.replaceWith(el("div.sample", errorCard(error)));
  }
}

/** One a line, out of the API's description. */
function routes({ paths }) {
  const lines = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, { summary }]) => `${method.toUpperCase().padEnd(4)} ${path}\n     ${summary}`),
  );
  return lines.join("\n");
}
