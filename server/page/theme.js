// The chosen colours, before the first paint; without a choice the system's hold. A plain script, so that it runs at once.
(() => {
  try {
    const chosen = localStorage.getItem("sluice.theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // A browser that keeps nothing: the system's colours.
  }
})();
