// One streamed generation: its outputs as they grow, and what is to be said while nothing comes.

import { call, Refusal, stream, Unreachable } from "./api.js";

const SILENCE_MS = 2500;
const SAY_EVERY_MS = 400;

/** An output: its text, its tokens with what is told of them, and its end. */
export class Output {
  text = "";
  tokens = [];
  details = null;

  constructor(sequence) {
    this.sequence = sequence;
  }

  add(event) {
    this.text += event.token.special ? "" : event.token.text;
    this.tokens.push(event);
    this.details = event.details ?? this.details;
  }
}

/**
 * Stream the answer of `path` to `body` and tell each new event: `onToken(output, event)`. `onNotice(text)` says why nothing comes, and "" when
 * it goes on. Resolves with the outputs by number.
 */
export async function generate(path, body, { signal, onToken, onNotice = () => {} }) {
  const outputs = new Map();
  const watch = watchSilence(onNotice);
  try {
    for await (const events of stream(path, { ...body, stream: true }, signal)) {
      watch.heard();
      for (const event of events) {
        const number = event.sequence ?? 0;
        if (!outputs.has(number)) outputs.set(number, new Output(number));
        outputs.get(number).add(event);
        onToken(outputs.get(number), event);
      }
    }
  } finally {
    watch.end();
  }
  const all = [...outputs.values()];
  if (all.length === 0 || all.some((output) => output.details === null)) throw new Unreachable("cut off");
  return all;
}

/** After a silence, ask the server how it is: a worker that was lost is replaced and the stream goes on. */
function watchSilence(onNotice) {
  let timer = 0;
  let turn = 0;
  let isShown = false;
  const wait = () => {
    timer = setTimeout(ask, SILENCE_MS);
  };
  const ask = async () => {
    const mine = ++turn;
    const text = await reasonOfSilence();
    if (mine !== turn) return;
    isShown = true;
    onNotice(text);
    wait();
  };
  const end = () => {
    clearTimeout(timer);
    turn += 1;
    if (isShown) onNotice("");
    isShown = false;
  };
  wait();
  return { heard: () => (end(), wait()), end };
}

async function reasonOfSilence() {
  try {
    await call("/readyz");
    return "Waiting in the queue…";
  } catch (error) {
    if (error instanceof Refusal && error.code === "engine_restarting") {
      return "The model is restarting. The response will continue in a moment.";
    }
    return error instanceof Refusal ? error.message : "The server is not responding.";
  }
}

const REASONS = {
  length: "stopped at the length limit",
  stop_sequence: "stopped at a stop text",
  banned_phrase: "stopped before a banned phrase",
};

/** One line about a finished output: how much, how fast, why it ended. */
export function summary(details) {
  const { generated_tokens: count, timings, finish_reason: reason } = details;
  const parts = [`${count} ${count === 1 ? "token" : "tokens"}`];
  const seconds = timings.total_s - timings.first_token_s;
  if (count > 1 && seconds > 0) parts.push(`${rate((count - 1) / seconds)} tokens/s`);
  if (timings.first_token_s !== null) parts.push(`first after ${timings.first_token_s.toFixed(2)} s`);
  if (REASONS[reason]) parts.push(REASONS[reason]);
  return parts.join(" · ");
}

function rate(value) {
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}

/** Counts tokens, and tells `say` now and then how many came how fast. */
export class Pace {
  count = 0;
  #start = performance.now();
  #saidAt = 0;

  constructor(say) {
    this.say = say;
  }

  add() {
    this.count += 1;
    const now = performance.now();
    if (now - this.#saidAt < SAY_EVERY_MS) return;
    this.#saidAt = now;
    this.say(`${this.count} tokens · ${rate((1000 * this.count) / (now - this.#start))} tokens/s`);
  }
}
