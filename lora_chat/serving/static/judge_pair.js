// The prompt and both replies, with the same layout for both, and the buttons of a vote.

import { build, buildButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { showText } from "./text.js";

// Choices in the order of their buttons: the value that is sent, its label, its keys and the text of a stored vote.
export const CHOICES = [
  { value: "left", label: "Reply 1 is better", keys: ["1", "ArrowLeft"], hint: "1 ←", done: "Reply 1 preferred" },
  { value: "tie", label: "Equally good", keys: ["0", "ArrowDown"], hint: "0 ↓", done: "Tie" },
  { value: "both bad", label: "Both bad", keys: ["x", "X", "ArrowUp"], hint: "X ↑", done: "Both bad" },
  { value: "right", label: "Reply 2 is better", keys: ["2", "ArrowRight"], hint: "2 →", done: "Reply 2 preferred" },
];
const ROLES = { system: "System", user: "Prompt", assistant: "Earlier reply", tool: "Tool result", tools: "Tools", text: "Beginning of the text" };

// Return a node with the prompt and both replies. `heading` gets the focus when the pair appears.
export function buildPair(pair, heading) {
  return build(
    "div",
    { class: "judge-pair" },
    build("section", { class: "card judge-prompt", "aria-label": "Prompt" }, heading, pair.context.map(buildMessage)),
    build("div", { class: "judge-replies" }, buildReply(1, pair.left), buildReply(2, pair.right)),
  );
}

function buildMessage(message, number, all) {
  const last = number === all.length - 1;
  const content = build("div", { class: "content", dir: "auto" }, renderSafely(message.text));
  const title = build("h4", { class: "judge-role small muted" }, ROLES[message.role] || "Message");
  if (message.role === "system" || (!last && message.text.length > 400)) {
    return build("details", {}, build("summary", {}, ROLES[message.role] || "Message"), content);
  }
  return build("div", { class: "judge-message" }, title, content);
}

function buildReply(number, reply) {
  const id = "judge-reply-" + number;
  const content = reply.text.trim() ? build("div", { class: "content", dir: "auto" }, renderSafely(reply.text)) : build("p", { class: "muted" }, "(empty reply)");
  return build(
    "article",
    { class: "card judge-reply", "aria-labelledby": id },
    build("h3", { id: id }, "Reply " + number),
    content,
    reply.cut ? build("p", { class: "small muted" }, "(longer than the limit, cut here)") : null,
  );
}

// Render Markdown, or the plain text if that fails: a vote does not depend on the page's renderer.
function renderSafely(text) {
  try {
    return renderMarkdown(text);
  } catch {
    return build("p", { class: "plain-text" }, showText(text));
  }
}

// Return the bar with the buttons of a vote. `act` has vote(choice), note(), undo() and finish().
export function buildBar(act) {
  const choices = CHOICES.map((choice) =>
    buildButton([choice.label + " ", build("kbd", { "aria-hidden": "true" }, choice.hint)], () => act.vote(choice), { class: "judge-choice", "aria-keyshortcuts": choice.keys.join(" ") }));
  const note = buildButton(["Note ", build("kbd", { "aria-hidden": "true" }, "N")], act.note, { class: "quiet", "aria-expanded": "false", "aria-controls": "judge-note-field", "aria-keyshortcuts": "n" });
  const undo = buildButton(["Undo ", build("kbd", { "aria-hidden": "true" }, "U")], act.undo, { class: "quiet", "aria-keyshortcuts": "u" });
  const finish = buildButton("Finish", act.finish, { class: "quiet" });
  const text = build("textarea", { id: "judge-note", rows: "2", maxlength: "2000", dir: "auto" });
  const field = build("div", { id: "judge-note-field", class: "field", hidden: true }, build("label", { for: "judge-note" }, "Note on this pair (kept in the run and shown in its report)"), text);
  const bar = build("div", { class: "judge-bar", role: "group", "aria-label": "Your vote" }, field, build("div", { class: "judge-choices" }, choices), build("div", { class: "row judge-tools" }, note, undo, build("span", { class: "grow" }), finish));
  return { bar: bar, choices: choices, note: note, undo: undo, finish: finish, text: text, field: field };
}
