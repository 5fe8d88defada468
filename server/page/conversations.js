// Conversations, kept in the browser and nowhere else.
//
// A conversation is {id, title, updated, system, turns}; a turn {text, answers}; an answer {model, text, note, state},
// one for each side that was asked. States: done, stopped, failed, running.

import { forget, load, save } from "./storage.js";

const FORMAT = "sluice-conversations";
const STATES = ["done", "stopped", "failed", "running"];
const TITLE_CHARACTERS = 60;

export class Conversations {
  constructor() {
    const index = load("conversations", []);
    this.index = Array.isArray(index) ? index.filter((entry) => typeof entry?.id === "string") : [];
    this.isKept = true;
  }

  create() {
    return { id: freshId(), title: "", updated: Date.now(), system: load("system", ""), turns: [] };
  }

  open(id) {
    const kept = sound(load(`conversation.${id}`, null));
    return kept && { ...kept, id };
  }

  /** Keep it; `isKept` tells whether the browser had room. */
  save(conversation) {
    conversation.title ||= titleOf(conversation);
    this.isKept = save(`conversation.${conversation.id}`, conversation);
    const entry = { id: conversation.id, title: conversation.title, updated: conversation.updated };
    this.index = [entry, ...this.index.filter(({ id }) => id !== entry.id)].sort((a, b) => b.updated - a.updated);
    save("conversations", this.index);
    save("system", conversation.system);
  }

  remove(id) {
    forget(`conversation.${id}`);
    this.index = this.index.filter((entry) => entry.id !== id);
    save("conversations", this.index);
  }

  /** All of them, as the text of a file. */
  exported() {
    const all = this.index.map(({ id }) => this.open(id)).filter(Boolean);
    return JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 2);
  }

  /** Add those of such a file, as copies; how many there were. Throws where it is no such file. */
  add(text) {
    const content = JSON.parse(text);
    if (content?.format !== FORMAT || !Array.isArray(content.conversations)) throw new Error("no conversations");
    const found = content.conversations.map(sound).filter(Boolean);
    for (const conversation of found) this.save({ ...conversation, id: freshId() });
    return found.length;
  }
}

function freshId() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function titleOf({ turns }) {
  const [line] = (turns[0]?.text ?? "").trim().split("\n");
  const characters = [...line];
  return characters.length > TITLE_CHARACTERS ? `${characters.slice(0, TITLE_CHARACTERS).join("")}…` : line;
}

const text = (value) => (typeof value === "string" ? value : "");

/** Only what the page knows, each of its type; null of anything that is no conversation. */
function sound(value) {
  if (!Array.isArray(value?.turns)) return null;
  const turns = value.turns.filter((turn) => typeof turn?.text === "string");
  return {
    title: text(value.title),
    updated: Number.isFinite(value.updated) ? value.updated : Date.now(),
    system: text(value.system),
    turns: turns.map((turn) => ({ text: turn.text, answers: (Array.isArray(turn.answers) ? turn.answers : []).map(soundAnswer) })),
  };
}

function soundAnswer(answer) {
  const state = STATES.includes(answer?.state) ? answer.state : "done";
  return {
    model: text(answer?.model),
    text: text(answer?.text),
    // What was running when the page was closed is not running any more.
    note: state === "running" ? "the page was closed" : text(answer?.note),
    state: state === "running" ? "stopped" : state,
  };
}

/** The messages of a request for the answer of turn `number`, as side `side` has seen the conversation. */
export function messagesUpTo(conversation, number, side) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const turn of conversation.turns.slice(0, number)) {
    const answer = turn.answers[side] ?? turn.answers[0];
    if (!answer?.text) continue;
    messages.push({ role: "user", content: turn.text }, { role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: conversation.turns[number].text }];
}
