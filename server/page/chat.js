// The chat: conversations with one model, or with two side by side.

import { Sidebar, welcome } from "./chat_sidebar.js";
import { TurnView } from "./chat_turn.js";
import { codeButton } from "./code_samples.js";
import { Conversations, messagesUpTo } from "./conversations.js";
import { announce, button, el, freshId } from "./dom.js";
import { Follower } from "./frames.js";
import { CHAT } from "./settings_fields.js";
import { parameters } from "./settings_form.js";
import { Sides } from "./sides.js";
import { load, save } from "./storage.js";
import { growing, onEnter } from "./typing.js";

export class Chat {
  id = "chat";
  label = "Chat";
  icon = "M4 5h16v11H11l-5 4v-4H4z";

  /** The tab, or null where no model has a chat template. */
  static of({ models }) {
    const chatty = models.filter((model) => model.has_chat_template);
    return chatty.length ? new Chat(chatty) : null;
  }

  constructor(models) {
    this.sides = new Sides("chat", CHAT, models);
    this.sides.onChange(() => this.#drawHints());
    this.conversations = new Conversations();
    this.sidebar = new Sidebar(this.conversations, {
      open: (id) => this.open(this.conversations.open(id)),
      create: () => this.open(this.conversations.create()),
      removed: (id) => {
        if (id !== this.conversation.id) return;
        // Without turns it is not kept again.
        this.conversation.turns = [];
        this.open(this.conversations.create());
      },
    });
    this.running = null;
    this.#build();
    this.open(this.conversations.open(load("open", "")) ?? this.conversations.create());
    addEventListener("pagehide", () => this.#keep());
  }

  #build() {
    const id = freshId("message");
    this.field = growing(el("textarea", { id, rows: 1, dir: "auto", placeholder: "Write a message", enterkeyhint: "send" }));
    onEnter(this.field, () => this.#send());
    this.sendButton = button("send", "Send", () => this.#send(), { class: "round-button" });
    this.stopButton = button("stop", "Stop", () => this.stop(), { class: "round-button", hidden: true });
    this.hints = el("span.hint");
    this.turns = el("div.turns", { role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.scroller = el("div.scroller", { tabindex: -1 }, this.turns);
    this.latest = button("down", "Scroll to bottom", () => {}, { class: "round-button latest" });
    this.follower = new Follower(this.scroller, this.latest);
    const composer = el(
      "form.composer",
      { onsubmit: (event) => event.preventDefault() },
      el("label.offscreen", { for: id }, "Your message"),
      this.field,
      el("div.composer-bar", this.hints, codeButton(() => this.#sample()), this.sendButton, this.stopButton),
    );
    this.element = el("div.chat", this.scroller, el("div.dock", this.latest, composer));
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    this.panel = el("div", this.#systemField(), this.sides.panel);
    this.#drawHints();
  }

  #systemField() {
    const id = freshId("system");
    const onchange = () => {
      this.conversation.system = this.system.value;
      save("system", this.system.value);
      this.#keep();
    };
    this.system = el("textarea.control", { id, rows: 3, dir: "auto", placeholder: "How the assistant should behave", onchange });
    return el("div.panel-content.first", el("div.field-block", el("label", { for: id }, "System prompt"), this.system));
  }

  open(conversation) {
    this.stop();
    this.#keep();
    this.conversation = conversation;
    save("open", conversation.id);
    this.system.value = conversation.system;
    this.views = conversation.turns.map((turn) => this.#turnView(turn));
    this.turns.replaceChildren(...this.views.map((view) => view.element));
    this.#drawWelcome();
    this.sidebar.draw(conversation.id);
    this.follower.follow();
    this.onOpened?.();
  }

  stop() {
    this.running?.abort();
  }

  show(mayFocus) {
    if (mayFocus) this.field.focus({ preventScroll: true });
    this.follower.grown();
  }

  #turnView(turn) {
    return new TurnView(turn, { answer: () => this.#answer(turn), grown: () => this.follower.grown() });
  }

  #isReadable() {
    const { problem } = this.sides;
    if (problem) this.hints.textContent = problem;
    return problem === "";
  }

  #send(text = this.field.value) {
    if (text.trim() === "" || this.running || !this.#isReadable()) return;
    const turn = { text, answers: [] };
    this.field.value = "";
    this.field.dispatchEvent(new Event("input"));
    this.turns.querySelector(".welcome")?.remove();
    this.conversation.turns.push(turn);
    this.views.push(this.#turnView(turn));
    this.turns.append(this.views.at(-1).element);
    this.follower.follow();
    this.#answer(turn);
  }

  /** Answer the turn anew; what followed it is dropped. */
  async #answer(turn) {
    this.stop();
    const number = this.conversation.turns.indexOf(turn);
    this.conversation.turns.length = number + 1;
    for (const view of this.views.splice(number + 1)) view.element.remove();
    const sides = this.sides.active;
    this.sides.clearComplaints();
    const bodies = sides.map((side, i) => this.#body(side, messagesUpTo(this.conversation, number, i)));
    const answers = this.views[number].begin(sides);
    const running = new AbortController();
    const conversation = this.conversation;
    this.#setRunning(running);
    this.#keep(conversation);
    this.sidebar.draw(conversation.id);
    const errors = await Promise.all(answers.map((view, i) => view.run(bodies[i], running.signal)));
    errors.forEach((error, i) => error && this.sides.point(sides[i], error));
    this.#keep(conversation);
    if (this.running !== running) return;
    this.#setRunning(null);
    this.sidebar.draw(this.conversation.id);
    announce(errors.some(Boolean) ? "The response failed." : "The response is complete.");
  }

  #body(side, messages) {
    return { model: side.model, messages, parameters: parameters(side.values), stream: true };
  }

  #sample() {
    const text = this.field.value || "Hello!";
    const turns = [...this.conversation.turns, { text, answers: [] }];
    const [side] = this.sides.active;
    return { path: "/generate", body: this.#body(side, messagesUpTo({ ...this.conversation, turns }, turns.length - 1, 0)) };
  }

  #setRunning(running) {
    this.running = running;
    this.sendButton.hidden = running !== null;
    this.stopButton.hidden = running === null;
  }

  #keep(conversation = this.conversation) {
    if (!conversation?.turns.length) return;
    conversation.updated = Date.now();
    this.conversations.save(conversation);
  }

  #drawWelcome() {
    if (!this.views.length) this.turns.append(welcome(this.sides.active[0].model, (text) => this.#send(text)));
  }

  #drawHints() {
    this.hints.replaceChildren(this.sides.active.map((side) => side.model).join("  ·  "));
    const model = this.turns?.querySelector(".welcome strong");
    if (model) model.textContent = this.sides.active[0].model;
  }
}
