// Into the clipboard, also where the page is not served over TLS and the browser's own way is closed.

import { announce, el, icon } from "./dom.js";

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const area = el("textarea.offscreen", { readOnly: true, value: text, "aria-hidden": "true" });
  const focused = document.activeElement;
  // Inside of an open dialog only what it holds can be selected.
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isDone;
}

/** A button that copies what `text()` is then, and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const said = el("span", label);
  const button = el("button.quiet-button", icon("copy"), said);
  button.addEventListener("click", async () => {
    const isDone = await copy(text());
    said.textContent = isDone ? "Copied" : "Press Ctrl+C to copy";
    announce(said.textContent);
    setTimeout(() => (said.textContent = label), 1600);
  });
  return button;
}
