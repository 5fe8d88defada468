// One turn of a chat: what was said, and an answer for each side that was asked.

import { AnswerView } from "./chat_answer.js";
import { copyButton } from "./copy.js";
import { el, freshId, quietButton, textButton } from "./dom.js";
import { growing, isComposing } from "./typing.js";

export class TurnView {
  /** `actions`: `answer()` it anew, and `grown()`. */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.said = el("div.said", { dir: "auto" }, turn.text);
    this.tools = el(
      "div.turn-tools",
      quietButton("edit", "Edit", () => this.#startEditing()),
      copyButton(() => this.turn.text),
    );
    this.question = el("div.question", this.said, this.tools);
    this.answers = el("div.answers");
    this.again = quietButton("redo", "Regenerate", () => actions.answer());
    this.element = el("section.turn", this.question, this.answers);
    this.views = turn.answers.map((answer) => this.#answerView(answer));
    this.#drawAnswers();
  }

  /** Fresh answers, one for each of `sides`. */
  begin(sides) {
    this.turn.answers = sides.map((side) => ({ model: side.model, text: "", note: "", state: "running" }));
    this.views = this.turn.answers.map((answer) => this.#answerView(answer));
    this.#drawAnswers();
    return this.views;
  }

  #answerView(answer) {
    const number = this.turn.answers.indexOf(answer);
    const isOneOfTwo = this.turn.answers.length > 1;
    const title = isOneOfTwo && [el("span.side-name", "AB"[number]), answer.model];
    return new AnswerView(answer, { title, onGrown: this.actions.grown, onRetry: () => this.actions.answer() });
  }

  #drawAnswers() {
    this.answers.classList.toggle("two", this.views.length > 1);
    this.answers.replaceChildren(...this.views.map((view) => view.element));
    this.views[0]?.footer.append(this.again);
  }

  #startEditing() {
    const id = freshId("edit");
    const field = growing(el("textarea.control", { id, rows: 2, value: this.turn.text, dir: "auto" }));
    const close = () => {
      this.question.replaceChildren(this.said, this.tools);
      this.tools.querySelector("button").focus();
    };
    const take = () => {
      if (field.value.trim() === "") return;
      this.turn.text = field.value;
      this.said.textContent = field.value;
      close();
      this.actions.answer();
    };
    field.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        take();
      }
    });
    const ask = textButton("send", "Send", take, { class: "button primary" });
    const cancel = textButton(null, "Cancel", close);
    const label = el("label.offscreen", { for: id }, "Edit your message");
    this.question.replaceChildren(el("div.editor", label, field, el("div.row.end", cancel, ask)));
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}
