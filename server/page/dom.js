// Elements made of plain values. Text only ever becomes text nodes: no function here, nor in any other file of the
// page, takes HTML, and the browser is told to refuse it (`trusted-types 'none'`).

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected", "textContent", "readOnly"]);

/** An element: `el("p.hint", { id }, "text")`. `onclick` and the like are listeners, null and false leave an attribute out. */
export function el(selector, ...content) {
  const [name, ...classes] = selector.split(".");
  const props = content[0]?.constructor === Object ? content.shift() : {};
  const node = document.createElement(name);
  if (name === "button") node.type = "button";
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || (value === false && !PROPERTIES.has(key))) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (PROPERTIES.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...content.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  redo: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  plus: "M12 5v14M5 12h14",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  sliders: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5a2 2 0 1 0 0 4 2 2 0 0 0 0-4M8 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M5 19l1.5-1.5M17.5 6.5L19 5",
  dark: "M19.5 14A8 8 0 0 1 10 4.5 8 8 0 1 0 19.5 14",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  key: "M8 12a4 4 0 1 0 0 8 4 4 0 0 0 0-8M11 13l9-9M16 8l3 3",
  close: "M6 6l12 12M18 6L6 18",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5",
  down: "M12 5v14M6 13l6 6 6-6",
  swap: "M4 8h15M15 4l4 4-4 4M20 16H5M9 12l-4 4 4 4",
  alert: "M12 4L2.5 20h19zM12 10v4M12 17v.2",
};

/** An icon, for the eye only: what it means stands in a label beside it. */
export function drawing(line) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [["viewBox", "0 0 24 24"], ["class", "icon"], ["aria-hidden", "true"]]) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", line);
  svg.append(path);
  return svg;
}

/** One of the icons that all of the page shares. */
export function icon(name) {
  return drawing(ICONS[name]);
}

/** A button that is an icon; its label is said. */
export function button(name, label, onclick, props) {
  return el("button", { class: "icon-button", onclick, "aria-label": label, title: label, ...props }, icon(name));
}

/** A button that reads its label, behind an icon where it has one. */
export function textButton(name, label, onclick, props) {
  return el("button", { class: "button", onclick, ...props }, name && icon(name), el("span", label));
}

/** The same, of little weight. */
export function quietButton(name, label, onclick) {
  return textButton(name, label, onclick, { class: "quiet-button" });
}

/** The logo. */
export function logo() {
  const image = el("img.logo", { alt: "", width: 28, height: 28 });
  image.src = new URL("icon.svg", import.meta.url).href;
  return image;
}

let lastId = 0;

/** A name for an element that a label or a description points to. */
export function freshId(prefix) {
  return `${prefix}-${++lastId}`;
}

/** What changed, said to those who listen instead of looking. */
export function announce(text) {
  const region = document.getElementById("announcements");
  if (region) region.textContent = text;
}
