// What went wrong, in plain words, and what to do about it.

import { Refusal, Unreachable } from "./api.js";
import { el, icon, textButton } from "./dom.js";

const TITLES = {
  queue_full: "The server is busy",
  rate_limited: "Too many requests",
  deadline_exceeded: "The time limit passed",
  starting: "The models are loading",
  draining: "The server is stopping",
  engine_restarting: "The model is restarting",
  server_shutdown: "The server was stopped",
  context_length_exceeded: "Too long for this model",
  model_not_found: "Unknown model",
  invalid_value: "A value does not fit",
  unknown_parameter: "Unknown setting",
  unsupported_value: "Some settings cannot be combined",
};
const HINTS = {
  queue_full: "Many requests are waiting. Try again in a moment.",
  engine_restarting: "Try again in a few seconds.",
  context_length_exceeded: "Shorten the text.",
  model_not_found: "Choose another model in the settings.",
  unsupported_value: "Change or clear one of them in the settings.",
};

/** Title, text and hint of whatever was thrown. `hints` come before those that hold everywhere. */
export function explain(error, hints = {}) {
  if (error instanceof Unreachable) {
    return {
      title: "The server is not responding",
      text: "The connection failed, or the server is not running.",
      hint: "The response so far is kept. Try again when the server is back.",
    };
  }
  if (error.name === "Unreadable") return { title: "A field cannot be read", text: error.message, hint: "" };
  if (!(error instanceof Refusal)) {
    return { title: "The page has an error", text: String(error?.message ?? error), hint: "Reload the page." };
  }
  if (error.status === 401 || error.status === 403) {
    const title = error.status === 401 ? "The server requires an API key" : "This API key does not allow that";
    return { title, text: error.message, hint: "Enter another key with the key button at the top." };
  }
  const title = TITLES[error.code] ?? (error.status >= 500 ? "Server error" : "The server rejected the request");
  const hint = { ...HINTS, ...hints }[error.code] ?? (error.status >= 500 ? `Try again. Request id in the log: ${error.requestId}.` : "");
  return { title, text: error.message, hint };
}

/** The explanation as a card; `retry` is what its button does. */
export function errorCard(error, retry, hints) {
  const { title, text, hint } = explain(error, hints);
  return el(
    "div.notice.bad",
    { role: "alert" },
    icon("alert"),
    el("div.notice-text", el("strong", title), el("p", text), hint && el("p.soft", hint)),
    retry && textButton("redo", "Try again", retry),
  );
}
