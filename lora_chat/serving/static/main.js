// Start of the page: the tabs and their views, the models, and the state of the connection.

import { connection } from "./api.js";
import { startChat, stopReply } from "./chat.js";
import { fillCompare, startCompare, stopCompare } from "./compare.js";
import { announce, byId, notify } from "./dom.js";
import { startJudge } from "./judge.js";
import { loadModels, models, showLoadFailure, startPicker } from "./model_picker.js";
import { closeSides } from "./side_panels.js";
import { startShortcuts } from "./shortcuts.js";
import { showTab, startTabs } from "./tabs.js";

const STARTERS = { compare: startCompare, judge: startJudge };
const VIEWS = ["chat", "compare", "judge"];

startPicker();
startChat();
startTabs(STARTERS);
startShortcuts({
  stop: () => (byId("chat").hidden ? stopCompare() : stopReply() || closePanels()),
  select: (number) => {
    showTab(VIEWS[number], STARTERS);
    byId("tab-" + VIEWS[number]).focus();
  },
  create: () => {
    showTab("chat", STARTERS);
    byId("new-conversation").click();
  },
});
document.addEventListener("compare", (event) => {
  showTab("compare", STARTERS);
  fillCompare(event.detail.messages);
});

connection.listeners.push((connected) => {
  const strip = byId("connection");
  strip.hidden = connected;
  strip.textContent = connected ? "" : "The server does not answer. Your conversations are safe in this browser; the page asks again every three seconds.";
  if (!connected) announce(strip.textContent);
  if (connected) {
    notify("The server answers again.");
    refresh();
  }
});

function closePanels() {
  const inside = document.activeElement && document.activeElement.closest(".side");
  const closed = closeSides();
  if (closed && inside) byId("toggle-" + inside.id).focus();
  return closed;
}

async function refresh() {
  try {
    await loadModels();
    showLoadFailure(null);
  } catch (error) {
    if (models.list.length) notify(error.message);
    else showLoadFailure(error, refresh);
  }
}

refresh();
// Adapters come and go while the server runs.
document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") refresh(); });
