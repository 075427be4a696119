// Nodes of the page. Text becomes text nodes only, and attributes are limited to a list, so no string becomes markup.

const ATTRIBUTES = new Set([
  "id", "class", "type", "role", "href", "rel", "target", "title", "dir", "lang", "for", "name", "value", "min", "max",
  "step", "low", "high", "rows", "start", "scope", "tabindex", "hidden", "open", "disabled", "checked", "placeholder",
  "inputmode", "autocomplete", "download", "enterkeyhint", "spellcheck", "maxlength", "datetime", "colspan",
]);

// Return an element: build("a", {href: "https://…", class: "link"}, "text", node, …). `data-*` and `aria-*` are allowed.
// An attribute that is true is set without a value; false, null and undefined leave it out.
export function build(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  // Children first: below dir="auto" each later insertion would look for the direction in the whole text again.
  append(node, children);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (!ATTRIBUTES.has(name) && !/^(aria|data)-[a-z-]+$/.test(name)) throw new Error("attribute " + name + " is not allowed");
    node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

// Append strings as text nodes, nodes, and lists of both; null and undefined are skipped.
export function append(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(node, child);
    else if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

// Return a button with a visible label that calls a function.
export function buildButton(label, act, attributes = {}) {
  const button = build("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", act);
  return button;
}

// Return whether a key press sends. While a word is composed (IME) Enter chooses it, and on a touch screen it is a new line.
export function isSendKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return false;
  return event.ctrlKey || event.metaKey || !matchMedia("(pointer: coarse)").matches;
}

export function byId(id) {
  return document.getElementById(id);
}

// Replace the children of a node.
export function fill(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

// Let a screen reader read a text at its next pause. The same text twice is read twice.
export function announce(text) {
  const node = byId("announcer");
  node.replaceChildren();
  setTimeout(() => node.replaceChildren(text.slice(0, 2000)), 50);
}

let noticeTimer = 0;

// Show a line above the view for some seconds; it is read by screen readers too.
export function notify(text, seconds = 8) {
  const node = byId("notice");
  node.hidden = false;
  node.textContent = text;
  announce(text);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { node.hidden = true; }, seconds * 1000);
}

// Return a function that calls another one once calls have stopped for some milliseconds.
export function debounce(act, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), milliseconds);
  };
}
