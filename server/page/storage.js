// What the browser keeps. Where it keeps nothing (private windows, no space left), the page works on without.

const PREFIX = "sluice.";

/** A value that was kept, or `otherwise`. */
export function load(name, otherwise) {
  try {
    const kept = localStorage.getItem(PREFIX + name);
    return kept === null ? otherwise : JSON.parse(kept);
  } catch {
    return otherwise;
  }
}

/** Whether the value is kept now. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function forget(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // Nothing was kept.
  }
}

/** The API key, for as long as this window lives. */
export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(PREFIX + "key") ?? "";
    } catch {
      return "";
    }
  },
  set(key) {
    try {
      sessionStorage.setItem(PREFIX + "key", key);
    } catch {
      // It is asked for again.
    }
  },
};
