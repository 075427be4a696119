// A conversation is a tree: an edited question or a second try of a reply is another version beside the first one.
// The chosen versions form the path that is shown, sent and exported. A conversation is plain data plus functions.

import { repairText } from "./text.js";

const MAX_MESSAGES = 2000;
const MAX_TEXT = 2_000_000;
const ROLES = new Set(["user", "assistant"]);

function createId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function createConversation() {
  const now = Date.now();
  return { version: 1, id: createId(), created: now, updated: now, system: "", messages: [], chosen: {} };
}

// Return the conversation in a decoded JSON value, or null if it is not one. Unknown keys are dropped.
export function readConversation(value) {
  if (!value || typeof value !== "object" || value.version !== 1 || !isId(value.id)) return null;
  if (!Array.isArray(value.messages) || value.messages.length > MAX_MESSAGES || !isText(value.system)) return null;
  const messages = [];
  const known = new Set();
  for (const entry of value.messages) {
    const message = readMessage(entry, known);
    if (!message) return null;
    known.add(message.id);
    messages.push(message);
  }
  const chosen = {};
  const choices = value.chosen && typeof value.chosen === "object" ? Object.entries(value.chosen) : [];
  for (const [parent, child] of choices) {
    if ((parent === "root" || known.has(parent)) && known.has(child)) chosen[parent] = child;
  }
  return {
    version: 1, id: value.id, created: readTime(value.created), updated: readTime(value.updated),
    system: value.system, messages: messages, chosen: chosen,
  };
}

// A parent comes before its children, so a damaged file cannot form a circle.
function readMessage(entry, known) {
  if (!entry || typeof entry !== "object" || !isId(entry.id) || known.has(entry.id) || !ROLES.has(entry.role)) return null;
  if (!isText(entry.content) || (entry.parent !== null && !known.has(entry.parent))) return null;
  const calls = Array.isArray(entry.calls) ? entry.calls.slice(0, 64) : [];
  if (!calls.every((call) => call && isText(call.id) && isText(call.name) && isText(call.arguments))) return null;
  return {
    id: entry.id,
    parent: entry.parent,
    role: entry.role,
    content: entry.content,
    reasoning: isText(entry.reasoning) ? entry.reasoning : "",
    calls: calls.map((call) => ({ id: call.id, name: call.name, arguments: call.arguments })),
    model: isText(entry.model) ? entry.model : "",
    finish: isText(entry.finish) ? entry.finish : "",
    tokens: Number.isInteger(entry.tokens) && entry.tokens > 0 ? entry.tokens : 0,
    edited: entry.edited === true,
  };
}

function isId(value) {
  return typeof value === "string" && /^[0-9a-f]{16}$/.test(value);
}

function isText(value) {
  return typeof value === "string" && value.length <= MAX_TEXT;
}

function readTime(value) {
  return Number.isFinite(value) && value > 0 && value < 8.64e15 ? value : Date.now();
}

// Return whether a question and its reply still fit.
export function hasRoom(conversation) {
  return conversation.messages.length + 2 <= MAX_MESSAGES;
}

// Add a message below a parent (null for the first one), choose it, and return it.
export function addMessage(conversation, parent, role, fields = {}) {
  const message = { id: createId(), parent: parent, role: role, content: "", reasoning: "", calls: [], model: "", finish: "", tokens: 0, edited: false, ...fields };
  conversation.messages.push(message);
  conversation.chosen[parent || "root"] = message.id;
  return message;
}

export function removeMessage(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other.id !== message.id);
  const others = findVersions(conversation, message);
  const key = message.parent || "root";
  if (others.length) conversation.chosen[key] = others[others.length - 1].id;
  else delete conversation.chosen[key];
}

// Return the messages of the chosen path, from the first one to the last one.
export function listPath(conversation) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const path = [];
  for (let key = "root"; ;) {
    const message = byId.get(conversation.chosen[key]);
    if (!message || (message.parent || "root") !== key) return path;
    path.push(message);
    key = message.id;
  }
}

// Return the versions of a message, which have the same parent and role.
export function findVersions(conversation, message) {
  return conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

export function chooseVersion(conversation, message) {
  conversation.chosen[message.parent || "root"] = message.id;
}

// Return the messages of a request: the system prompt if there is one, and the path up to a message, if one is named.
export function listRequestMessages(conversation, last = null) {
  const messages = conversation.system.trim() ? [{ role: "system", content: repairText(conversation.system) }] : [];
  for (const message of listPath(conversation)) {
    messages.push(toRequestMessage(message));
    if (last && message.id === last.id) break;
  }
  return messages;
}

function toRequestMessage(message) {
  const sent = { role: message.role, content: repairText(message.content) };
  if (message.reasoning) sent.reasoning_content = repairText(message.reasoning);
  if (message.calls.length) {
    sent.tool_calls = message.calls.map((call, number) => ({
      id: call.id || "call_" + number,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return sent;
}

export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return first ? first.content.trim().split("\n")[0] || "…" : "New conversation";
}
