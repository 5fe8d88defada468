// How the server is, asked now and then: a dot in the header, and a plain notice while it is gone.

import { call, Refusal } from "./api.js";
import { el, icon } from "./dom.js";

const CALM_MS = 15_000;
const ANXIOUS_MS = 2_000;

export class ServerStatus {
  #timer = 0;
  #isGone = false;

  constructor() {
    this.dot = el("span.dot");
    this.text = el("span");
    this.badge = el("span.status", { role: "status" }, this.dot, this.text);
    this.notice = el("div.notice.bar-notice", { role: "alert", hidden: true });
    addEventListener("online", () => this.look());
    addEventListener("unhandledrejection", () => this.look());
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  async look() {
    clearTimeout(this.#timer);
    const { state, text, notice } = await stateOfServer();
    this.dot.dataset.state = state;
    this.text.textContent = text;
    this.badge.title = notice || "The server is ready";
    this.notice.hidden = state !== "gone";
    if (state === "gone" && !this.#isGone) this.notice.replaceChildren(icon("alert"), el("span", notice));
    this.#isGone = state === "gone";
    if (!document.hidden) this.#timer = setTimeout(() => this.look(), state === "good" ? CALM_MS : ANXIOUS_MS);
  }
}

async function stateOfServer() {
  try {
    await call("/readyz");
    return { state: "good", text: "ready", notice: "" };
  } catch (error) {
    if (!(error instanceof Refusal)) {
      const notice = "The server is not responding. Retrying every two seconds; your text is kept.";
      return { state: "gone", text: "not there", notice };
    }
    const text = { engine_restarting: "restarting", starting: "loading", draining: "stopping" }[error.code];
    return { state: "busy", text: text ?? "not ready", notice: error.message };
  }
}
