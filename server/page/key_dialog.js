// Asks for the API key. It stays in this window's session and goes to this server alone.

import { openDialog } from "./dialog.js";
import { el, freshId, textButton } from "./dom.js";
import { apiKey } from "./storage.js";

let open = null;

/** Resolves with whether there is a key now; several who ask at once get one dialog. */
export function askForKey(wasRefused) {
  open ??= ask(wasRefused).finally(() => (open = null));
  return open;
}

function ask(wasRefused) {
  return new Promise((resolve) => {
    const id = freshId("key");
    const field = el("input.control", { type: "password", id, autocomplete: "off", spellcheck: "false", value: apiKey.get() });
    const text = wasRefused ? "The server rejected this key." : "The key is kept until you close this tab and sent only to this server.";
    const take = () => {
      apiKey.set(field.value.trim());
      dialog.close("taken");
    };
    const form = el(
      "form",
      { onsubmit: (event) => (event.preventDefault(), take()) },
      el("label", { for: id }, "API key"),
      field,
      el(wasRefused ? "p.field-error" : "p.hint", { role: wasRefused ? "alert" : null }, text),
      el("div.row.end", textButton(null, "Cancel", () => dialog.close()), el("button.button.primary", { type: "submit" }, "Save")),
    );
    const onClosed = (value) => resolve(value === "taken" && apiKey.get() !== "");
    const dialog = openDialog("API key", form, { onClosed });
    field.focus();
  });
}
