// The panels beside the chat: conversations and settings. In a narrow window they lie over the chat.

import { byId } from "./dom.js";

const SIDES = ["settings", "conversations"];

export function startSides() {
  for (const id of SIDES) {
    byId("toggle-" + id).addEventListener("click", () => toggle(id));
    byId("close-" + id).addEventListener("click", () => {
      closeSides();
      byId("toggle-" + id).focus();
    });
  }
  byId("proof-state").addEventListener("click", () => toggle("settings"));
}

// Close the panels; return whether one was open.
export function closeSides() {
  const open = SIDES.filter((id) => byId(id).classList.contains("open"));
  for (const id of open) {
    byId(id).classList.remove("open");
    if (id === "settings") byId(id).hidden = true;
    setExpanded(id, false);
  }
  return open.length > 0;
}

function toggle(id) {
  const open = !byId(id).classList.contains("open");
  closeSides();
  if (!open) return;
  const side = byId(id);
  side.hidden = false;
  side.classList.add("open");
  setExpanded(id, true);
  byId("close-" + id).focus();
}

function setExpanded(id, open) {
  for (const button of document.querySelectorAll(`[aria-controls="${id}"][aria-expanded]`)) button.setAttribute("aria-expanded", String(open));
}
