// Conversations in the browser's localStorage, one key each, so that two open pages do not overwrite each other's.
// Nothing is sent to the server for keeping. Whatever is read is checked; what cannot be read is left out.

import { readConversation } from "./conversation.js";

const PREFIX = "lora-chat/conversation/";
const SETTINGS = "lora-chat/settings";
const MAX_CONVERSATIONS = 100;
const MAX_CHARACTERS = 2_000_000;
const deleted = new Set(); // a reply that ends after its conversation was deleted must not bring it back

// Return the stored conversations, the one used last first.
export function loadConversations() {
  const conversations = [];
  for (const key of listKeys()) {
    const conversation = readConversation(readJson(key));
    if (conversation && key === PREFIX + conversation.id) conversations.push(conversation);
  }
  return conversations.sort((first, second) => second.updated - first.updated);
}

// Return why a conversation could not be stored, or "" if it was. The oldest are not removed without a word.
export function saveConversation(conversation) {
  if (deleted.has(conversation.id)) return "";
  const text = JSON.stringify(conversation);
  const key = PREFIX + conversation.id;
  if (text.length > MAX_CHARACTERS) return "This conversation is too long to be kept. Export it, and start a new one.";
  try {
    if (localStorage.getItem(key) === null && listKeys().length >= MAX_CONVERSATIONS) {
      return "This browser keeps " + MAX_CONVERSATIONS + " conversations. Delete one to keep this one.";
    }
    localStorage.setItem(key, text);
    return "";
  } catch {
    return "This conversation is not kept: the browser's storage is full or switched off. Export or delete conversations.";
  }
}

export function deleteConversation(id) {
  deleted.add(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch { /* storage is switched off, so nothing is stored */ }
}

export function deleteAllConversations() {
  for (const key of listKeys()) deleteConversation(key.slice(PREFIX.length));
}

// Call a function with the id of a conversation that another open page has changed.
export function watchOtherPages(act) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) act(event.key === null ? null : event.key.slice(PREFIX.length));
  });
}

// Return the stored conversation with an id, or null.
export function loadConversation(id) {
  return readConversation(readJson(PREFIX + id));
}

// Return the stored settings as an object, whose values the caller checks.
export function loadSettings() {
  const value = readJson(SETTINGS);
  return value && typeof value === "object" && !Array.isArray(value) ? value : {};
}

export function saveSettings(changes) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify({ ...loadSettings(), ...changes }));
  } catch { /* settings last until the page is closed */ }
}

function listKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

function readJson(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}
