// Header, tabs, drawers: what stands around the views.

import { button, drawing, el, icon, logo } from "./dom.js";
import { askForKey } from "./key_dialog.js";
import { serverLink } from "./server_link.js";
import { ServerStatus } from "./server_status.js";
import { load, save } from "./storage.js";

const LINKS = [["docs", "API"], ["info", "info"], ["metrics", "metrics"]];
const THEMES = { auto: "as the system", light: "light", dark: "dark" };

export class Frame {
  constructor(info, views) {
    this.info = info;
    this.views = views;
    this.status = new ServerStatus();
    this.tabs = el("div.tabs", { role: "tablist", "aria-label": "Tasks", onkeydown: (event) => this.#step(event) });
    this.tabs.append(...views.map((view) => this.#tab(view)));
    this.stage = el("main.stage", views.map((view) => this.#tabPanel(view)));
    this.left = this.#drawer("left", "Conversations");
    this.right = this.#drawer("right", "Settings");
    this.scrim = el("div.scrim", { onclick: () => this.#closeDrawers() });
    this.menuButton = button("menu", "Conversations", () => this.#toggle(this.left), { "aria-expanded": "false" });
    this.settingsButton = button("sliders", "Settings", () => this.#toggle(this.right), { "aria-expanded": "false" });
    this.element = el("div.frame", this.#header(), this.status.notice, this.left, this.stage, this.right, this.scrim);
    for (const view of views) view.onOpened = () => this.#closeDrawers();
    addEventListener("hashchange", () => this.#choose(this.#viewOfAddress()));
    addEventListener("keydown", (event) => event.key === "Escape" && this.#closeDrawers());
  }

  show() {
    const attribution = this.info.attribution.map((line) => el("p", line));
    this.about = el("footer.about", el("p", `Sluice ${this.info.version}`, LINKS.map(([path, label]) => [" · ", serverLink(path, label)])), attribution);
    const announcements = el("p.offscreen", { id: "announcements", role: "status" });
    document.body.replaceChildren(this.element, announcements);
    this.#choose(this.#viewOfAddress() ?? this.views.find(({ id }) => id === load("tab", "")) ?? this.views[0]);
    this.status.look();
  }

  #header() {
    const brand = el("div.brand", logo(), el("span", "Sluice"));
    const tools = el("div.header-tools", this.status.badge, button("key", "API key", () => askForKey(false)), this.#themeButton(), this.settingsButton);
    return el("header.header", this.menuButton, brand, el("nav", { "aria-label": "Tasks" }, this.tabs), tools);
  }

  #themeButton() {
    const { dataset } = document.documentElement;
    const choose = (name) => {
      dataset.theme = name;
      node.replaceChildren(icon(name));
      node.title = node.ariaLabel = `Colours: ${THEMES[name]}`;
    };
    const next = () => {
      const names = Object.keys(THEMES);
      choose(names[(names.indexOf(dataset.theme) + 1) % names.length]);
      // A plain word, for theme.js reads it before anything else is loaded.
      localStorage.setItem("sluice.theme", dataset.theme);
    };
    const node = el("button.icon-button", { onclick: next });
    choose(dataset.theme ?? "auto");
    return node;
  }

  #tab(view) {
    const props = { role: "tab", id: `tab-${view.id}`, "aria-controls": `view-${view.id}` };
    return el("button", { ...props, onclick: () => this.#choose(view) }, drawing(view.icon), el("span", view.label));
  }

  #tabPanel(view) {
    return el("div.view", { role: "tabpanel", id: `view-${view.id}`, "aria-labelledby": `tab-${view.id}`, hidden: true }, view.element);
  }

  #step(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    const number = this.views.indexOf(this.view);
    this.#choose(this.views[(number + way + this.views.length) % this.views.length]);
    document.getElementById(`tab-${this.view.id}`).focus();
  }

  #viewOfAddress() {
    return this.views.find(({ id }) => `#${id}` === location.hash);
  }

  #choose(view) {
    if (!view || view === this.view) return;
    const isFirst = this.view === undefined;
    this.view = view;
    for (const one of this.views) {
      const tab = document.getElementById(`tab-${one.id}`);
      tab.setAttribute("aria-selected", String(one === view));
      tab.tabIndex = one === view ? 0 : -1;
      document.getElementById(`view-${one.id}`).hidden = one !== view;
    }
    history.replaceState(null, "", `#${view.id}`);
    document.title = `${view.label} · Sluice`;
    save("tab", view.id);
    this.#fill(this.left, view.sidebar?.element);
    this.#fill(this.right, el("div.panel-scroll", view.panel, this.about));
    this.menuButton.hidden = !view.sidebar;
    this.element.classList.toggle("with-left", Boolean(view.sidebar));
    this.#closeDrawers();
    // A touch screen would bring up its keyboard.
    view.show(isFirst || matchMedia("(hover: hover)").matches);
  }

  #drawer(side, label) {
    const close = button("close", "Close", () => this.#closeDrawers());
    const body = el("div.drawer-body");
    return el(`aside.drawer.${side}`, { "aria-label": label }, el("header.drawer-head", el("h2", label), close), body);
  }

  #fill(drawer, content) {
    drawer.hidden = !content;
    drawer.querySelector(".drawer-body").replaceChildren(...(content ? [content] : []));
  }

  #toggle(drawer) {
    const isOpen = drawer.classList.contains("open");
    this.#closeDrawers();
    // On a wide screen both stand beside the view, and the buttons fold them away.
    if (getComputedStyle(drawer).position !== "fixed") {
      this.element.classList.toggle(drawer === this.left ? "no-left" : "no-right");
      return;
    }
    if (isOpen) return;
    drawer.classList.add("open");
    this.scrim.classList.add("open");
    this.#buttonOf(drawer).setAttribute("aria-expanded", "true");
    drawer.querySelector("button, select, textarea").focus();
  }

  #buttonOf(drawer) {
    return drawer === this.left ? this.menuButton : this.settingsButton;
  }

  #closeDrawers() {
    for (const drawer of [this.left, this.right]) {
      if (drawer.classList.contains("open") && drawer.contains(document.activeElement)) this.#buttonOf(drawer).focus();
      drawer.classList.remove("open");
      this.#buttonOf(drawer).setAttribute("aria-expanded", "false");
    }
    this.scrim.classList.remove("open");
  }
}
