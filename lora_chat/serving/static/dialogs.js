// Modal dialogs. The browser keeps the focus inside, closes them by Esc and returns the focus afterwards.

import { build, buildButton } from "./dom.js";

let dialogs = 0;

// Open a dialog with a title and content, and return it. It is removed from the page when it closes.
export function openDialog(title, content, buttons = []) {
  dialogs += 1;
  const id = "dialog-title-" + dialogs;
  const dialog = build(
    "dialog",
    { "aria-labelledby": id },
    build("h2", { id: id }, title),
    build("div", { class: "dialog-content" }, content),
    build("div", { class: "row end" }, buttons, buildButton("Close", () => dialog.close(), { class: "close" })),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Ask before something is lost, and return a promise of whether the person agreed.
export function askToConfirm(title, text, action) {
  return new Promise((resolve) => {
    let agreed = false;
    const dialog = openDialog(title, build("p", {}, text), [
      buildButton(action, () => { agreed = true; dialog.close(); }, { class: "danger" }),
    ]);
    dialog.querySelector(".close").textContent = "Cancel";
    dialog.querySelector(".close").focus();
    dialog.addEventListener("close", () => resolve(agreed));
  });
}
