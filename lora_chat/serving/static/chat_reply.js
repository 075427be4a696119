// One reply of the chat: asks for it, fills its message while it streams, and says how it ended.

import { streamChat } from "./api.js";
import { build, buildButton } from "./dom.js";
import { Reply } from "./reply.js";
import { showText } from "./text.js";

const SAVE_EVERY = 1000;

// Fill a message with the reply to a request. Returns the error, or null. `changed(saveNow)` is called as it grows.
export async function fillReply(message, body, signal, changed) {
  const reply = new Reply();
  let saved = performance.now();
  const take = () => {
    message.content = reply.content;
    message.reasoning = reply.reasoning;
    message.calls = reply.calls;
    message.tokens = reply.tokenCount;
    message.model = reply.model || message.model;
  };
  message.finish = "interrupted"; // kept if the page is closed before the end
  try {
    await streamChat(body, signal, (chunk) => {
      reply.add(chunk);
      take();
      const due = performance.now() - saved > SAVE_EVERY;
      if (due) saved = performance.now();
      changed(due);
    });
    message.finish = reply.finish || "stop";
    return null;
  } catch (error) {
    if (error.name === "AbortError") {
      message.finish = "stopped";
      return null;
    }
    message.finish = error.kind === "interrupted" ? "interrupted" : "failed";
    return error;
  }
}

// Return a card with an error in words and a button to try again, which waits as long as the server asked.
export function renderError(error, retry) {
  const button = buildButton("Try again", retry, { class: "primary" });
  const card = build("div", { class: "error-card" }, build("p", { role: "alert" }, showText(error.message)), build("div", { class: "row" }, button));
  if (error.kind === "key") {
    card.querySelector(".row").append(buildButton("Reload", () => location.reload()));
  }
  if (error.retryAfter) countDown(button, error.retryAfter);
  return card;
}

function countDown(button, seconds) {
  const end = performance.now() + 1000 * seconds;
  button.disabled = true;
  const show = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    if (left > 0) {
      button.textContent = "Try again in " + left + " s";
      setTimeout(show, 250);
      return;
    }
    button.textContent = "Try again";
    button.disabled = false;
  };
  show();
}
