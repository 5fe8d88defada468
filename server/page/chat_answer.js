// One answer of a chat: it streams in, and ends with a line about how it went.

import { Refusal } from "./api.js";
import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { errorCard } from "./errors.js";
import { perFrame } from "./frames.js";
import { generate, Pace, summary } from "./generation.js";
import { MarkdownView } from "./markdown.js";

const HINTS = { context_length_exceeded: "Start a new chat or edit an earlier message." };

export class AnswerView {
  /** `answer` is the conversation's own record; `onGrown` is called when the view has become longer. */
  constructor(answer, { title, onGrown, onRetry }) {
    this.answer = answer;
    this.onRetry = onRetry;
    this.body = el("div.md");
    this.markdown = new MarkdownView(this.body);
    this.note = el("span.note");
    this.footer = el("footer.answer-footer", this.note, copyButton(() => this.answer.text));
    this.notice = el("p.waiting", { hidden: true, role: "status" });
    this.problem = el("div");
    this.element = el(
      "article.answer",
      { "aria-label": `Response of ${answer.model}` },
      title && el("header.answer-title", title),
      this.body,
      this.notice,
      this.problem,
      this.footer,
    );
    this.drawing = perFrame(() => {
      this.markdown.update(this.answer.text);
      onGrown();
    });
    this.drawing.now();
    this.#setState(answer.state, answer.note);
  }

  /** Stream the request's answer; resolves when it has ended, however it did. The error, if it is one. */
  async run(body, signal) {
    const pace = new Pace((text) => (this.note.textContent = text));
    this.answer.text = "";
    this.problem.replaceChildren();
    this.drawing.now();
    this.#setState("running", "");
    const onToken = (output) => {
      pace.add();
      if (output.sequence > 0) return;
      this.answer.text = output.text;
      this.drawing.ask();
    };
    try {
      const outputs = await generate("/generate", body, { signal, onToken, onNotice: (text) => this.#tell(text) });
      this.#end("done", summary(outputs[0].details));
      return null;
    } catch (error) {
      return this.#fail(error, pace.count);
    }
  }

  #fail(error, count) {
    if (error.name === "AbortError") {
      this.#end("stopped", `stopped after ${count} tokens`);
      return null;
    }
    this.problem.replaceChildren(errorCard(error, this.onRetry, HINTS));
    this.#end("failed", error instanceof Refusal ? "refused" : "cut off");
    return error;
  }

  #end(state, note) {
    this.#tell("");
    this.drawing.now();
    this.#setState(state, note);
  }

  #tell(text) {
    this.notice.textContent = text;
    this.notice.hidden = text === "";
    this.drawing.ask();
  }

  #setState(state, note) {
    Object.assign(this.answer, { state, note });
    this.note.textContent = note;
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "running"));
  }
}
