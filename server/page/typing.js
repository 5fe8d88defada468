// Keys in text fields, with input methods in mind: the Enter that takes a candidate sends nothing.

/** Whether the key belongs to a word that is being composed. Some browsers tell only by the old key code. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Call `send` for a plain Enter; with Shift it makes a line. */
export function onEnter(field, send) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    send();
  });
}

/** Call `run` for Ctrl+Enter or Cmd+Enter. */
export function onCtrlEnter(field, run) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || isComposing(event)) return;
    event.preventDefault();
    run();
  });
}

/** Let the field be as high as its text, up to what the style sheet allows. */
export function growing(field) {
  if (CSS.supports("field-sizing", "content")) return field;
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  field.addEventListener("input", fit);
  requestAnimationFrame(fit);
  return field;
}
