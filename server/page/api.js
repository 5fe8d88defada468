// How the page talks with the server: the same routes that every client uses, under the page's own address.

import { apiKey } from "./storage.js";

/** The server's own refusal, in its words. */
export class Refusal extends Error {
  constructor(status, envelope = {}) {
    super(envelope.message ?? `The server returned status ${status} without a message.`);
    this.status = status;
    this.code = envelope.code ?? "";
    this.param = envelope.param ?? "";
    this.requestId = envelope.request_id ?? "";
  }
}

/** Nobody answered, or the connection broke. */
export class Unreachable extends Error {}

let askForKey = async () => false;

/** `ask` is called when the server wants a key, and tells whether there is one now. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI).href;
}

async function send(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  const method = body ? "POST" : "GET";
  try {
    return await fetch(address(path), { method, headers, body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    throw asUnreachable(error);
  }
}

function asUnreachable(error) {
  return error.name === "AbortError" ? error : new Unreachable(error.message);
}

async function answered(path, body, signal) {
  let response = await send(path, body, signal);
  if (response.status === 401 && (await askForKey(apiKey.get() !== ""))) {
    response = await send(path, body, signal);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  // A body that cannot be read has no dialect, and some have a sentence alone.
  throw new Refusal(response.status, typeof error === "string" ? { message: error } : error);
}

/** The answer's JSON. */
export async function call(path, body, signal) {
  const response = await answered(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw asUnreachable(error);
  }
}

/** The answer's text. */
export async function callText(path) {
  return (await answered(path)).text();
}

/** Events of a stream as they come, all that arrive together as one list. */
export async function* stream(path, body, signal) {
  const response = await answered(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      throw asUnreachable(error);
    }
    if (chunk.done) return;
    const parts = (rest + chunk.value).split("\n\n");
    rest = parts.pop();
    const events = parts.map(readEvent).filter((event) => event !== null);
    const failed = events.findIndex((event) => event.error);
    const sound = failed < 0 ? events : events.slice(0, failed);
    if (sound.length) yield sound;
    if (failed >= 0) throw new Refusal(response.status, events[failed].error);
  }
}

/** An event is one line of JSON here; what is no event is a comment that keeps the connection open. */
function readEvent(part) {
  const [, data] = /^data: (.+)$/m.exec(part) ?? [];
  return data ? JSON.parse(data) : null;
}
