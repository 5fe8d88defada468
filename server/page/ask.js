// Questions about a text, and the parts of it that answer them.

import { call } from "./api.js";
import { bars } from "./bars.js";
import { pieces } from "./characters.js";
import { el } from "./dom.js";
import { textInput } from "./text_input.js";
import { Workbench } from "./workbench.js";

const CONTEXT = "Maria Jensen moved to Portland in 2019. She had lived in Oslo before, where she worked as a nurse.";
const QUESTION = "Where did Maria live before?";

export class Ask extends Workbench {
  constructor(models) {
    super("question-answering", "question-answering", models, { label: "Ask", lead: "Find the answer to a question in a text of any length." });
    this.text = textInput("question-answering", "Text", { rows: 5, otherwise: CONTEXT });
    this.question = textInput("question-answering.question", "Question", { rows: 1, otherwise: QUESTION });
    this.inputArea.append(this.text.element, this.question.element);
  }

  isReady() {
    return this.text.field.value.trim() !== "" && this.question.field.value.trim() !== "";
  }

  request(side) {
    const inputs = { question: this.question.field.value, context: this.text.field.value };
    return { path: "/question-answering", body: { model: side.model, inputs, parameters: this.parametersOf(side) } };
  }

  async run(side, output, signal) {
    const { path, body } = this.request(side);
    const answers = [await call(path, body, signal)].flat();
    const place = el("p.sentence", { dir: "auto" });
    const show = (answer) => place.replaceChildren(...marked(body.inputs.context, answer));
    show(answers[0]);
    const entries = answers.map((answer) => ({ ...answer, label: answer.answer || "No answer in this text" }));
    output.replaceChildren(bars(entries, { onclick: show }), place);
  }
}

/** The text with the answer in colour. */
function marked(text, answer) {
  const found = answer.answer ? [answer] : [];
  return pieces(text, found).map(([piece, isAnswer]) => (isAnswer ? el("mark.filled", piece) : piece));
}
