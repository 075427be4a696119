// The list of stored conversations beside the chat.

import { build, buildButton, byId, fill, notify } from "./dom.js";
import { askToConfirm } from "./dialogs.js";
import { download } from "./clipboard.js";
import { titleOf } from "./conversation.js";
import { deleteAllConversations, deleteConversation, loadConversation, loadConversations } from "./conversation_store.js";
import { showName, shorten } from "./text.js";
import { buildTrainingRow, nameFile } from "./training_row.js";

// Connect the list. open(conversation) shows one, or a new one for null.
export function startList(current, open) {
  byId("new-conversation").addEventListener("click", () => {
    open(null);
    byId("question").focus();
  });
  byId("export-all").addEventListener("click", exportAll);
  byId("clear-all").addEventListener("click", async () => {
    const count = loadConversations().length;
    const text = "All " + count + " conversations in this browser are deleted. They are stored nowhere else.";
    if (!count || !(await askToConfirm("Delete all conversations?", text, "Delete all"))) return;
    deleteAllConversations();
    open(null);
    byId("new-conversation").focus();
  });
  return () => showList(current(), open);
}

function showList(current, open) {
  const stored = loadConversations();
  fill(byId("conversation-list"), stored.map((conversation) => {
    const title = shorten(showName(titleOf(conversation), 200), 60);
    const selected = conversation.id === current.id;
    const button = buildButton(title, () => open(loadConversation(conversation.id)), { class: "quiet title", "aria-current": selected ? "true" : null, dir: "auto" });
    const remove = buildButton("×", async () => {
      if (!(await askToConfirm("Delete this conversation?", "“" + title + "” is stored nowhere else.", "Delete"))) return;
      deleteConversation(conversation.id);
      if (selected) open(null);
      else showList(current, open);
      byId("new-conversation").focus();
    }, { class: "quiet delete", "aria-label": "Delete conversation: " + title, title: "Delete" });
    return build("li", { class: selected ? "selected" : "" }, button, remove);
  }));
  byId("export-all").disabled = byId("clear-all").disabled = !stored.length;
}

function exportAll() {
  const rows = loadConversations().map(buildTrainingRow);
  const lines = rows.map((row) => row.line).filter(Boolean);
  const left = rows.length - lines.length;
  if (lines.length) download(nameFile("conversations"), lines.join(""));
  notify(lines.length + " of " + rows.length + " conversations exported." + (left ? " The others have no reply, or one that was cut off or is empty." : ""));
}
