// The list of conversations, and the ways in and out of the browser.

import { announce, button, el, icon, quietButton, textButton } from "./dom.js";

export class Sidebar {
  /** `actions`: `open(id)`, `create()` and `removed(id)`. */
  constructor(conversations, actions) {
    this.conversations = conversations;
    this.actions = actions;
    this.list = el("ul.conversations", { "aria-label": "Conversations" });
    this.said = el("p.hint", { role: "status" });
    this.file = el("input", { type: "file", accept: "application/json,.json", hidden: true, "aria-label": "File to import", onchange: () => this.#take() });
    this.element = el(
      "div.panel-content",
      textButton("plus", "New chat", () => actions.create(), { class: "button wide" }),
      this.list,
      el(
        "div.panel-foot",
        this.said,
        el(
          "div.row",
          quietButton("upload", "Import", () => this.file.click()),
          quietButton("download", "Export", () => this.#export()),
          this.file,
        ),
      ),
    );
  }

  draw(openId) {
    const entries = this.conversations.index.map(({ id, title }) => this.#entry(id, title || "Untitled", id === openId));
    this.list.replaceChildren(...entries);
    if (!entries.length) this.list.append(el("li.hint", "Conversations stay in this browser."));
    if (!this.conversations.isKept) this.#say("Browser storage is full. Export conversations, then delete some.");
  }

  #entry(id, title, isOpen) {
    const open = el(
      "button.conversation",
      { "aria-current": isOpen ? "true" : null, dir: "auto", onclick: () => this.actions.open(id) },
      title,
    );
    const remove = button("trash", `Delete “${title}”`, () => this.#remove(id, title));
    return el("li", open, remove);
  }

  #remove(id, title) {
    const conversation = this.conversations.open(id);
    this.conversations.remove(id);
    this.actions.removed(id);
    const undo = () => {
      this.conversations.save({ ...conversation, id });
      this.actions.open(id);
      this.#say("");
    };
    this.#say(`Deleted “${title}”. `);
    if (conversation) this.said.append(el("button.link", { onclick: undo }, "Undo"));
  }

  #export() {
    const url = URL.createObjectURL(new Blob([this.conversations.exported()], { type: "application/json" }));
    el("a", { href: url, download: "conversations.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  async #take() {
    const [file] = this.file.files;
    this.file.value = "";
    try {
      const count = this.conversations.add(await file.text());
      this.#say(`${count} ${count === 1 ? "conversation" : "conversations"} imported.`);
      if (count) this.actions.open(this.conversations.index[0].id);
    } catch {
      this.#say("This file contains no conversations.");
    }
  }

  #say(text) {
    this.said.replaceChildren(text);
    announce(text);
  }
}

/** What stands in an empty conversation. */
export function welcome(model, ask) {
  const ideas = ["Explain why the sky is blue to a child.", "Write a short poem about a lighthouse.", "Write a Python function that adds two numbers."];
  return el(
    "div.welcome",
    el("h2", "How can I help?"),
    el("p.soft", "You are chatting with ", el("strong", model), ". It runs on this server."),
    el("div.ideas", ideas.map((text) => el("button.idea", { onclick: () => ask(text) }, el("span", text), icon("send")))),
  );
}
