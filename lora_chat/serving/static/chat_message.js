// A message of the chat as a list item: content, reasoning, tool calls and its buttons.

import { build, buildButton, fill } from "./dom.js";
import { writeToClipboard } from "./clipboard.js";
import { findVersions } from "./conversation.js";
import { MarkdownView } from "./markdown.js";
import { FINISHES } from "./reply.js";
import { countWords, showName, showText } from "./text.js";

// Return {node, update}: the list item of a message, and a function that shows its text as it grows.
// actions: edit(message, node), retry(message), compare(message), choose(version)
export function renderMessage(conversation, message, actions, streaming) {
  const own = message.role === "user";
  const node = build("li", { class: "message " + message.role, "data-id": message.id });
  const name = own ? "You" : showName(message.model || "reply", 60);
  const body = build("div", { class: "body" });
  const content = build("div", { class: own ? "content plain-text" : "content", dir: own ? "auto" : null });
  const reasoning = build("div", { class: "plain-text", dir: "auto" });
  const thoughts = build("details", { class: "reasoning", hidden: true }, build("summary", {}, "Reasoning"), reasoning);
  const calls = build("div", { class: "calls" });
  const state = build("p", { class: "small state muted" });
  body.append(...(own ? [content, state] : [thoughts, content, calls, state]));

  const head = build("h3", { class: "speaker", dir: "auto" }, name, message.edited ? build("span", { class: "small muted" }, " (corrected)") : null);
  const foot = build("div", { class: "message-foot" });
  node.append(build("article", { "aria-label": (own ? "Your message" : "Reply of " + name) }, head, body, foot));

  const view = own ? null : new MarkdownView(content);
  const update = (finished) => {
    if (own) content.textContent = showText(message.content);
    else if (finished) view.finish(message.content);
    else view.update(message.content);
    thoughts.hidden = !message.reasoning;
    reasoning.textContent = showText(message.reasoning);
    fill(calls, message.calls.map(renderCall));
    state.textContent = finished ? describeEnd(message) : describeWait(message);
    state.hidden = !state.textContent;
    node.classList.toggle("streaming", !finished);
    node.setAttribute("aria-busy", String(!finished));
    fill(foot, finished ? [renderVersions(conversation, message, actions), ...renderButtons(message, actions, node)] : []);
  };
  update(!streaming);
  return { node: node, update: update };
}

function describeWait(message) {
  if (message.content || message.calls.length) return "";
  return message.reasoning ? "Thinking …" : "Waiting for the first token …";
}

function describeEnd(message) {
  const end = FINISHES[message.finish] ?? "";
  return message.content || message.calls.length ? end : "The reply has no text. " + end;
}

function renderCall(call) {
  const name = showName(call.name || "function");
  return build("div", { class: "call" },
    build("p", { class: "small muted" }, "Calls the function ", build("code", {}, name)),
    build("pre", { tabindex: "0", role: "group", "aria-label": "Arguments of " + name, dir: "ltr" }, showText(call.arguments)));
}

function renderVersions(conversation, message, actions) {
  const versions = findVersions(conversation, message);
  if (versions.length < 2) return null;
  const at = versions.findIndex((version) => version.id === message.id);
  const step = (label, text, to) => buildButton(text, () => actions.choose(versions[to]), { class: "quiet step", "aria-label": label, disabled: !versions[to] });
  return build("span", { class: "versions", role: "group", "aria-label": "Versions" },
    step("Previous version", "‹", at - 1), build("span", { class: "small" }, at + 1 + " of " + versions.length), step("Next version", "›", at + 1));
}

function renderButtons(message, actions, node) {
  const copy = buildButton("Copy", () => writeToClipboard(message.content, copy), { class: "quiet" });
  const edit = buildButton("Edit", () => actions.edit(message, node), { class: "quiet edit" });
  const last = message.role === "user"
    ? buildButton("Compare", () => actions.compare(message), { class: "quiet" })
    : buildButton("Retry", () => actions.retry(message), { class: "quiet" });
  const count = message.tokens && !message.edited ? build("span", { class: "small muted count" }, countWords(message.tokens, "token")) : null;
  return [copy, edit, last, count];
}

// Replace the content of a message by an editor. finish("send" | "save" | "cancel", text) is called at its end.
export function openEditor(message, node, finish) {
  const area = build("textarea", { rows: "3", dir: "auto", "aria-label": message.role === "user" ? "Edit your message" : "Correct the reply" });
  area.value = message.content;
  const end = (how) => finish(how, area.value);
  const own = message.role === "user";
  const buttons = build("div", { class: "row" },
    own ? buildButton("Send as new version", () => end("send"), { class: "primary" }) : null,
    buildButton(own ? "Save without sending" : "Save", () => end("save"), { class: own ? "" : "primary" }),
    buildButton("Cancel", () => end("cancel")));
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      end("cancel");
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      end(own ? "send" : "save");
    }
  });
  fill(node.querySelector(".content"), area, buttons);
  node.querySelector(".message-foot").replaceChildren();
  node.classList.add("editing");
  area.style.height = Math.min(480, area.scrollHeight + 4) + "px";
  area.focus();
}
