// The message box of the chat: it grows with its text, and Enter sends.

import { byId, isSendKey } from "./dom.js";

const MAX_HEIGHT = 240;

// send() is called for a message, changed() when its text changes, stop() by the button that replaces Send.
export function startComposer({ send, changed, stop }) {
  const question = byId("question");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("keydown", (event) => {
    if (!isSendKey(event)) return;
    event.preventDefault();
    send();
  });
  question.addEventListener("input", () => {
    grow(question);
    changed();
  });
  byId("stop").addEventListener("click", () => {
    stop();
    question.focus();
  });
}

// Empty the box after its message was sent.
export function clearComposer() {
  const question = byId("question");
  question.value = "";
  grow(question);
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = Math.min(MAX_HEIGHT, area.scrollHeight + 2) + "px";
}
