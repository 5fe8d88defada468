// Questions about a text, and the parts of it that answer them.

import { call } from "./api.js";
import { bars } from "./bars.js";
import { pieces } from "./characters.js";
import { el } from "./dom.js";
import { choice, integer, outputSettings } from "./settings_fields.js";
import { textInput } from "./text_input.js";
import { Workbench } from "./workbench.js";

const CONTEXT = "Maria Jensen moved to Portland in 2019. She had lived in Oslo before, where she worked as a nurse.";
const QUESTION = "Where did Maria live before?";

export class Ask extends Workbench {
  static task = "question-answering";
  static label = "Ask";
  static lead = "Find the answer to a question in a text of any length.";
  static icon = "M4 6h16M4 11h6M4 16h4M18.5 17.5L21 20M15 10.5a4 4 0 1 0 0 8 4 4 0 0 0 0-8";
  static settings = outputSettings(
    integer("top_k", "Answers", { min: 1 }),
    choice("handle_impossible_answer", "No answer", { choices: [["true", "possible"], ["false", "impossible"]] }),
    integer("max_answer_len", "Max answer length", { min: 1, hint: "In tokens" }),
    choice("align_to_words", "Whole words", { choices: [["true", "yes"], ["false", "no"]] }),
    integer("max_seq_len", "Window length", { min: 1, hint: "In tokens, with the question" }),
    integer("doc_stride", "Stride", { min: 0, hint: "Overlap of windows in tokens, for long texts" }),
    integer("max_question_len", "Max question length", { min: 1, hint: "In tokens; a longer question is cut" }),
  );

  /** Models of T5's kind write their answers. */
  static fits(model) {
    return super.fits(model) || Boolean(model.can_answer);
  }

  constructor(models) {
    super(models);
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
  const found = answer.answer && answer.start !== null ? [answer] : [];
  return pieces(text, found).map(([piece, isAnswer]) => (isAnswer ? el("mark.filled", piece) : piece));
}
