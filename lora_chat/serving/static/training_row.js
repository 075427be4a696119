// A conversation as a row of training data: one JSON object with `messages` in a line, which `lora-chat data` reads.

import { listPath, listRequestMessages } from "./conversation.js";

const COMPLETE = new Set(["stop", "tool_calls"]);

// Return {line, problem}: the row as one line of JSON Lines, or why the conversation is not one.
export function buildTrainingRow(conversation) {
  const messages = listRequestMessages(conversation);
  while (messages.length && messages[messages.length - 1].role !== "assistant") messages.pop();
  if (!messages.some((message) => message.role === "user")) return refuse("There is no question with a reply yet.");
  for (const message of messages) {
    if (!message.content.trim() && !message.tool_calls) return refuse("A " + (message.role === "assistant" ? "reply" : "message") + " is empty. Edit it or retry it.");
    if (/[\u{f0000}\u{f0001}]/u.test(message.content + (message.reasoning_content || ""))) return refuse("A message contains U+F0000 or U+F0001, which training data must not have.");
  }
  // A reply that was cut off would teach the model to stop in the middle.
  const cut = listPath(conversation).find((message) => message.role === "assistant" && !message.edited && !COMPLETE.has(message.finish));
  if (cut) return refuse("A reply is not complete. Retry it, or complete it with Edit.");
  return { line: JSON.stringify({ messages: messages }) + "\n", problem: "" };
}

function refuse(problem) {
  return { line: "", problem: problem };
}

// Return a name of a file from the time, such as "conversation-20261129-1204.jsonl".
export function nameFile(stem) {
  return stem + "-" + new Date().toISOString().slice(0, 16).replace(/[-:]/g, "").replace("T", "-") + ".jsonl";
}
