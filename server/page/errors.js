// What went wrong, in plain words, and what to do about it.

import { Refusal, Unreachable } from "./api.js";
import { el, icon, textButton } from "./dom.js";

const TITLES = {
  queue_full: "The server is busy",
  rate_limited: "Too many unfinished requests",
  deadline_exceeded: "The time limit passed",
  starting: "The models are still being loaded",
  draining: "The server is about to stop",
  engine_restarting: "The model is being restarted",
  server_shutdown: "The server was stopped",
  context_length_exceeded: "That is too long for this model",
  model_not_found: "This model is not served",
  invalid_value: "A value does not fit",
  unknown_parameter: "There is no such setting",
  unsupported_value: "Some settings do not go together",
};
const HINTS = {
  queue_full: "Many requests are waiting. Try again in a moment.",
  engine_restarting: "Try again in a few seconds.",
  context_length_exceeded: "In a chat, begin a new conversation or edit an earlier turn.",
  model_not_found: "Choose another model in the settings.",
  unsupported_value: "Change one of them in the settings, or empty its field.",
};

/** Title, text and hint of whatever was thrown. */
export function explain(error) {
  if (error instanceof Unreachable) {
    return {
      title: "The server does not answer",
      text: "The connection broke, or the server is not running.",
      hint: "What has come so far is kept. Try again when the server is back.",
    };
  }
  if (error.name === "Unreadable") return { title: "A field cannot be read", text: error.message, hint: "" };
  if (!(error instanceof Refusal)) {
    return { title: "The page made a mistake", text: String(error?.message ?? error), hint: "Reload the page." };
  }
  if (error.status === 401 || error.status === 403) {
    const title = error.status === 401 ? "The server wants an API key" : "This API key does not allow that";
    return { title, text: error.message, hint: "Enter another with the key button at the top of the page." };
  }
  const title = TITLES[error.code] ?? (error.status >= 500 ? "The server could not do this" : "The server refused this");
  const hint = HINTS[error.code] ?? (error.status >= 500 ? `Try again. The log has it as ${error.requestId}.` : "");
  return { title, text: error.message, hint };
}

/** The explanation as a card; `retry` is what its button does. */
export function errorCard(error, retry) {
  const { title, text, hint } = explain(error);
  return el(
    "div.notice.bad",
    { role: "alert" },
    icon("alert"),
    el("div.notice-text", el("strong", title), el("p", text), hint && el("p.soft", hint)),
    retry && textButton("redo", "Try again", retry),
  );
}
