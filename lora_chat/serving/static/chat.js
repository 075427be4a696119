// The chat: one conversation at a time, with the message box, the settings and the reply that streams.

import { announce, append, build, byId, debounce, fill, notify } from "./dom.js";
import { fillReply, renderError } from "./chat_reply.js";
import { openEditor, renderMessage } from "./chat_message.js";
import { download } from "./clipboard.js";
import { clearComposer, startComposer } from "./composer.js";
import { startMeter } from "./context_meter.js";
import { addMessage, chooseVersion, createConversation, findVersions, hasRoom, listPath, listRequestMessages, removeMessage } from "./conversation.js";
import { startList } from "./conversation_list.js";
import { loadConversation, loadConversations, saveConversation, watchOtherPages } from "./conversation_store.js";
import { loadModels, models } from "./model_picker.js";
import { buildSampling } from "./sampling.js";
import { closeSides, startSides } from "./side_panels.js";
import { repairText } from "./text.js";
import { buildTrainingRow, nameFile } from "./training_row.js";

const chat = { conversation: createConversation(), running: null, error: null, nodes: new Map(), readSampling: null, showList: null, askMeter: null };

export function startChat() {
  chat.readSampling = buildSampling(byId("sampling"), () => chat.askMeter());
  chat.showList = startList(() => chat.conversation, openConversation);
  chat.askMeter = startMeter(readNextPrompt);
  models.listeners.push(() => chat.askMeter());
  startComposer({ send: send, changed: () => chat.askMeter(), stop: stopReply });
  connectSettings();
  byId("export-row").addEventListener("click", exportRow);
  watchOtherPages((id) => {
    if (chat.running) return;
    if (id === chat.conversation.id) chat.conversation = loadConversation(id) || chat.conversation;
    show();
  });
  addEventListener("pagehide", () => { if (chat.running) save(); });
  openConversation(loadConversations()[0] || null);
}

// Stop the reply that streams; return whether there was one. The part that arrived stays.
export function stopReply() {
  if (!chat.running) return false;
  chat.running.abort();
  return true;
}

function openConversation(conversation) {
  stopReply();
  chat.conversation = conversation || createConversation();
  chat.error = null;
  chat.nodes.clear();
  byId("system").value = chat.conversation.system;
  closeSides();
  show();
  scrollToEnd();
}

function connectSettings() {
  const saveSystem = debounce(() => save(), 400);
  byId("system").addEventListener("input", () => {
    chat.conversation.system = byId("system").value;
    if (chat.conversation.messages.length) saveSystem();
    chat.askMeter();
  });
  startSides();
}

function send() {
  const text = byId("question").value;
  if (!text.trim()) return;
  if (!mayAnswer()) return;
  const path = listPath(chat.conversation);
  const last = path[path.length - 1];
  clearComposer();
  answer(addMessage(chat.conversation, last ? last.id : null, "user", { content: text }));
}

// Return whether a reply can be asked for now, and say why not.
function mayAnswer() {
  if (chat.running) notify("A reply is being written. Stop it first, or wait.");
  else if (!models.chosen) notify("The server serves no model. Is it running?");
  else if (!hasRoom(chat.conversation)) notify("This conversation is full. Start a new one.");
  else return true;
  return false;
}

// Ask the chosen model for a reply to a message, as a new version beside earlier ones.
async function answer(asked) {
  if (!mayAnswer()) return;
  const conversation = chat.conversation;
  const abort = new AbortController();
  const body = {
    model: models.chosen.id,
    messages: listRequestMessages(conversation, asked),
    ...chat.readSampling(),
    stream_options: { include_usage: true },
  };
  const message = addMessage(conversation, asked.id, "assistant", { model: models.chosen.id });
  chat.running = abort;
  chat.error = null;
  chat.streaming = message.id;
  save();
  show();
  scrollToEnd();
  let timer = 0;
  const draw = () => {
    timer = 0;
    if (chat.conversation !== conversation || chat.running !== abort) return;
    const near = isNearEnd();
    chat.nodes.get(message.id).update(false);
    if (near) scrollToEnd();
  };
  const error = await fillReply(message, body, abort.signal, (due) => {
    if (due) save(conversation);
    timer = timer || setTimeout(draw, 30);
  });
  clearTimeout(timer);
  if (chat.running === abort) chat.running = chat.streaming = null;
  if (!message.content && !message.reasoning && !message.calls.length && (error || message.finish === "stopped")) removeMessage(conversation, message);
  save(conversation);
  if (chat.conversation !== conversation) {
    showControls();
    return;
  }
  const near = isNearEnd();
  chat.error = error ? { error: error, retry: () => answer(asked) } : null;
  chat.nodes.delete(message.id);
  show();
  if (near) scrollToEnd();
  if (!error) announce(message.finish === "stopped" ? "Reply stopped." : "Reply: " + message.content);
  if (error && error.status === 404) loadModels().catch(() => {});
}

// Store the conversation, and say why if the browser cannot.
function save(conversation = chat.conversation) {
  conversation.updated = Date.now();
  const problem = saveConversation(conversation);
  if (problem) notify(problem, 20);
}

const actions = {
  edit(message, node) {
    if (chat.running) return notify("Stop the reply first.");
    openEditor(message, node, (how, text) => finishEdit(message, how, text));
  },
  retry(message) {
    answer(chat.conversation.messages.find((other) => other.id === message.parent));
    byId("question").focus();
  },
  choose(version) {
    if (chat.running) return notify("Stop the reply first.");
    chooseVersion(chat.conversation, version);
    chat.error = null;
    save();
    show();
    focusMessage(version.id, ".step:not(:disabled)");
  },
  compare(message) {
    const messages = listRequestMessages(chat.conversation, message);
    document.dispatchEvent(new CustomEvent("compare", { detail: { messages: messages } }));
  },
};

function finishEdit(message, how, text) {
  if (how === "send" && !mayAnswer()) return;
  chat.nodes.delete(message.id);
  if (how !== "cancel" && !text.trim()) notify("An empty message is not kept.");
  else if (how === "send") {
    answer(addMessage(chat.conversation, message.parent, message.role, { content: text }));
    byId("question").focus();
    return;
  } else if (how === "save") {
    message.content = text;
    message.edited = true;
    save();
  }
  show();
  focusMessage(message.id, ".edit");
}

function focusMessage(id, selector) {
  const entry = chat.nodes.get(id);
  const target = entry && entry.node.querySelector(selector);
  if (target) target.focus();
}

// Show the conversation. Messages that have not changed keep their nodes.
function show() {
  const path = listPath(chat.conversation);
  const list = byId("messages");
  const nodes = path.map((message) => {
    const key = [message.content.length, message.edited, message.finish, findVersions(chat.conversation, message).length].join();
    let entry = chat.nodes.get(message.id);
    if (!entry || entry.key !== key) {
      entry = { ...renderMessage(chat.conversation, message, actions, message.id === chat.streaming), key: key };
      chat.nodes.set(message.id, entry);
    }
    return entry.node;
  });
  if (chat.error) nodes.push(append(build("li", { class: "message" }), [renderError(chat.error.error, chat.error.retry)]));
  const unanswered = !chat.error && !chat.running && path.length && path[path.length - 1].role === "user" ? path[path.length - 1] : null;
  if (unanswered) nodes.push(append(build("li", { class: "message" }), [renderError({ message: "This message has no reply yet." }, () => answer(unanswered))]));
  fill(list, nodes);
  byId("empty-thread").hidden = nodes.length > 0;
  showControls();
  chat.showList();
  chat.askMeter();
}

function showControls() {
  byId("stop").hidden = !chat.running;
  byId("send").hidden = Boolean(chat.running);
  byId("export-row").disabled = !listPath(chat.conversation).some((message) => message.role === "assistant");
}

function isNearEnd() {
  const thread = byId("thread");
  return thread.scrollHeight - thread.scrollTop - thread.clientHeight < 120;
}

function scrollToEnd() {
  const thread = byId("thread");
  thread.scrollTop = thread.scrollHeight;
}

function readNextPrompt() {
  const messages = listRequestMessages(chat.conversation);
  const draft = byId("question").value;
  if (draft.trim()) messages.push({ role: "user", content: repairText(draft) });
  if (!models.chosen || !messages.some((message) => message.role === "user")) return null;
  // After a reply the next prompt is not complete until something is written, so the last question is counted.
  while (messages[messages.length - 1].role === "assistant") messages.pop();
  return { model: models.chosen, messages: messages, reserved: chat.readSampling().max_tokens || 1, isDraft: Boolean(draft.trim()) };
}

function exportRow() {
  const row = buildTrainingRow(chat.conversation);
  if (row.problem) return notify(row.problem);
  download(nameFile("conversation"), row.line);
  notify("Saved as one line of JSON Lines. Name the file under data.train in a recipe, and look at it with lora-chat data.");
}
