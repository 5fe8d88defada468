// A dialog: its title, a way out, and what it is for.

import { button, el } from "./dom.js";

/** Opens one over the page; `close(value)` on what is returned ends it, and `onClosed(value)` is told. */
export function openDialog(title, content, { isWide = false, onClosed } = {}) {
  const onclose = () => {
    dialog.remove();
    onClosed?.(dialog.returnValue);
  };
  const head = el("header", el("h2", title), button("close", "Close", () => dialog.close()));
  const dialog = el(isWide ? "dialog.dialog.wide" : "dialog.dialog", { "aria-label": title, onclose }, head, content);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
