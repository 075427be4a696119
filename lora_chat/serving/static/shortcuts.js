// Keyboard shortcuts of the page and the dialog that lists them.

import { build, byId } from "./dom.js";
import { openDialog } from "./dialogs.js";

const SHORTCUTS = [
  ["Enter", "Send the message"],
  ["Shift + Enter", "Start a new line"],
  ["Esc", "Stop the reply, or close a dialog"],
  ["Ctrl + Enter", "Send or save an edited message"],
  ["Alt + N", "New conversation"],
  ["Alt + 1, 2, 3", "Chat, Compare, Judge"],
  ["/", "Go to the message box"],
  ["← →", "Next tab, or next token in Compare"],
  ["1 2 0 X", "Judge: reply 1, reply 2, equally good, both bad"],
  ["N, U", "Judge: note, undo"],
  ["?", "This list"],
];

// stop() stops what runs in the view and returns whether anything did; select(number) shows a view.
export function startShortcuts({ stop, select, create }) {
  byId("open-shortcuts").addEventListener("click", openShortcuts);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (stop()) event.preventDefault();
      return;
    }
    if (event.altKey && !event.ctrlKey && !event.metaKey) {
      if (/^Digit[123]$/.test(event.code)) {
        event.preventDefault();
        select(Number(event.code.slice(5)) - 1);
      } else if (event.code === "KeyN") {
        event.preventDefault();
        create();
      }
      return;
    }
    if (isWriting(event.target) || event.ctrlKey || event.metaKey) return;
    if (event.key === "?") openShortcuts();
    else if (event.key === "/" && !byId("chat").hidden) {
      event.preventDefault();
      byId("question").focus();
    }
  });
}

function isWriting(node) {
  return node instanceof HTMLElement && (node.matches("textarea, select, input") || node.isContentEditable);
}

function openShortcuts() {
  const rows = SHORTCUTS.map(([keys, effect]) => build("tr", {}, build("th", { scope: "row" }, build("kbd", {}, keys)), build("td", {}, effect)));
  openDialog("Keyboard", build("table", { class: "keys" }, build("tbody", {}, rows)));
}
