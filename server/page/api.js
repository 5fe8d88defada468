// How the page talks with the server: the same routes that every client uses, under the page's own address.

import { apiKey } from "./storage.js";

/** The server's own refusal, in its words. */
export class Refusal extends Error {
  constructor(status, envelope = {}) {
    super(envelope.message ?? `The server answered with status ${status} and no explanation.`);
    this.status = status;
    this.code = envelope.code ?? "";
    this.param = envelope.param ?? "";
    this.requestId = envelope.request_id ?? "";
  }
}

/** Nobody answered, or the connection broke. */
export class Unreachable extends Error {}

const hooks = { askForKey: async () => false };

/** `ask` is called when the server wants a key, and tells whether there is one now. */
export function onKeyWanted(ask) {
  hooks.askForKey = ask;
}

export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI).href;
}

async function send(path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  try {
    return await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (error) {
    throw asUnreachable(error);
  }
}

function asUnreachable(error) {
  return error.name === "AbortError" ? error : new Unreachable(error.message);
}

async function answered(path, body, signal) {
  let response = await send(path, body, signal);
  if (response.status === 401 && (await hooks.askForKey(apiKey.get() !== ""))) {
    response = await send(path, body, signal);
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  throw new Refusal(response.status, content.error);
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

function readEvent(part) {
  const data = part
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
  return data === "" || data === "[DONE]" ? null : JSON.parse(data);
}
