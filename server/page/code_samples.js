// The request that the page would send, as a program: curl, Python, JavaScript. A key is never written out.

import { address } from "./api.js";
import { copyButton } from "./copy.js";
import { openDialog } from "./dialog.js";
import { el, quietButton } from "./dom.js";
import { errorCard } from "./errors.js";
import { apiKey, load, save } from "./storage.js";

const TITLE = "Code for this request";
const KEY_NAME = "SLUICE_API_KEY";
const LANGUAGES = [["curl", curl], ["Python", python], ["JavaScript", javascript]];

/** A shell command. */
function curl({ path, body }, hasKey) {
  const lines = [
    `curl ${body.stream ? "-N " : ""}${quoted(address(path))}`,
    "-H 'Content-Type: application/json'",
    ...(hasKey ? [`-H "Authorization: Bearer $${KEY_NAME}"`] : []),
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return lines.join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A program for Python and its `requests`. */
function python({ path, body }, hasKey) {
  const headers = hasKey ? `, headers={"Authorization": "Bearer " + os.environ["${KEY_NAME}"]}` : "";
  const imports = [...(body.stream ? ["import json"] : []), ...(hasKey ? ["import os"] : []), "", "import requests", ""];
  const call = `requests.post(${JSON.stringify(address(path))}, json=body${headers}${body.stream ? ", stream=True" : ""})`;
  const one = [`response = ${call}`, "response.raise_for_status()", "print(response.json())"];
  const streamed = [
    `with ${call} as response:`,
    "    response.raise_for_status()",
    "    for line in response.iter_lines():",
    '        if line.startswith(b"data: "):',
    '            print(json.loads(line[6:])["token"]["text"], end="", flush=True)',
    "print()",
  ];
  return [...imports, `body = ${literal(body)}`, ...(body.stream ? streamed : one)].join("\n");
}

const PYTHON_NAMES = new Map([[true, "True"], [false, "False"], [null, "None"]]);

/** A value as Python writes it. */
function literal(value, indent = "") {
  const inner = indent + "    ";
  if (PYTHON_NAMES.has(value)) return PYTHON_NAMES.get(value);
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const entries = isList
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  return entries.length ? `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${indent}${close}` : open + close;
}

/** A program for browsers and Node. */
function javascript({ path, body }, hasKey) {
  const authorization = hasKey ? `, Authorization: \`Bearer \${process.env.${KEY_NAME}}\`` : "";
  const request = [
    `const response = await fetch(${JSON.stringify(address(path))}, {`,
    '  method: "POST",',
    `  headers: { "Content-Type": "application/json"${authorization} },`,
    `  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
  ];
  const streamed = [
    'let rest = "";',
    "for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {",
    '  const events = (rest + chunk).split("\\n\\n");',
    "  rest = events.pop();",
    "  for (const event of events) {",
    '    if (event.startsWith("data: ")) console.log(JSON.parse(event.slice(6)).token.text);',
    "  }",
    "}",
  ];
  return [...request, ...(body.stream ? streamed : ["console.log(await response.json());"])].join("\n");
}

/** A button that shows what `request()` gives then, as a program, or why it gives none. */
export function codeButton(request) {
  return quietButton("code", "Code", () => {
    try {
      showCode(request());
    } catch (error) {
      openDialog(TITLE, el("div.sample", errorCard(error)));
    }
  });
}

function showCode(request) {
  const content = el("code");
  const tabs = el("div.segments", { role: "group", "aria-label": "Language" });
  const show = (language) => {
    save("code", language);
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab.textContent === language));
    content.textContent = LANGUAGES.find(([name]) => name === language)[1](request, apiKey.get() !== "");
  };
  tabs.append(...LANGUAGES.map(([name]) => el("button", { onclick: () => show(name) }, name)));
  const kept = load("code", "");
  show((LANGUAGES.find(([name]) => name === kept) ?? LANGUAGES[0])[0]);
  const bar = el("div.dialog-bar", tabs, copyButton(() => content.textContent));
  openDialog(TITLE, [bar, el("pre.sample", { tabindex: 0 }, content)], { isWide: true });
}
