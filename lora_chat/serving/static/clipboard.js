// Copy and download of text.

import { announce, build, notify } from "./dom.js";

// Copy a text, and show the result on the button that asked for it.
export async function writeToClipboard(text, button) {
  const copied = (await writeByApi(text)) || writeBySelection(text);
  if (!copied) {
    notify("The browser does not allow copying. Select the text and copy it yourself.");
    return;
  }
  announce("Copied");
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  setTimeout(() => {
    button.textContent = label;
    button.disabled = false;
  }, 1200);
}

async function writeByApi(text) {
  if (!navigator.clipboard) return false; // only pages from this computer or by https have it
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function writeBySelection(text) {
  const area = build("textarea", { class: "hidden", "aria-hidden": "true", tabindex: "-1" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (focused) focused.focus();
  return copied;
}

// Let the browser save a text as a file.
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl;charset=utf-8" }));
  const link = build("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
