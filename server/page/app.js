// The page's frame: asks what is served, makes a tab for each way to use it, and shows one.

import { call, onKeyWanted, Refusal } from "./api.js";
import { Ask } from "./ask.js";
import { Chat } from "./chat.js";
import { Classify } from "./classify.js";
import { Complete } from "./complete.js";
import { el, textButton } from "./dom.js";
import { explain } from "./errors.js";
import { Fill } from "./fill.js";
import { Frame } from "./frame.js";
import { askForKey } from "./key_dialog.js";
import { serverLink } from "./server_link.js";
import { Summarize, Translate } from "./rewrite.js";
import { Tag } from "./tag.js";

const ASK_AGAIN_MS = 1000;
/** In the order of their tabs. */
const VIEWS = [Chat, Complete, Translate, Summarize, Classify, Tag, Fill, Ask];

function splash(...content) {
  document.body.replaceChildren(el("main.splash", { role: "status" }, content));
}

/** What is served, once all of it is loaded. */
async function waitForModels() {
  for (;;) {
    try {
      const info = await call("/info");
      const waiting = info.models.filter((model) => !model.task);
      if (!waiting.length && Object.keys(info.tasks).length) return info;
      splash(el("div.spinner"), el("p", `Loading ${waiting.map(({ name }) => name).join(", ") || "the models"}…`));
    } catch (error) {
      const { title, text, hint } = explain(error);
      splash(el("h1", title), el("p", text), el("p.soft", hint));
      if (error instanceof Refusal && error.status === 401) {
        document.querySelector(".splash").append(textButton("key", "Enter a key", () => location.reload()));
        return null;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
}

onKeyWanted(askForKey);
const info = await waitForModels();
const views = info ? VIEWS.map((View) => View.of(info)).filter(Boolean) : [];
if (views.length) new Frame(info, views).show();
else if (info) splash(el("p", "This page has no tab for the served models. ", serverLink("docs", "All routes")));
