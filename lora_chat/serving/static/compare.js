// Compare: the same conversation to several models at once, side by side.

import { announce, build, byId, fill, isSendKey } from "./dom.js";
import { Column } from "./compare_column.js";
import { loadSettings, saveSettings } from "./conversation_store.js";
import { labelModel, models } from "./model_picker.js";
import { buildSampling } from "./sampling.js";
import { countWords, repairText, shorten, showText } from "./text.js";
import { hideDetail, LEVELS } from "./token_view.js";

const TOP_LOGPROBS = 5;
const state = { history: [], columns: [], abort: null, readSampling: null, chosen: null };

export function startCompare() {
  state.readSampling = buildSampling(byId("compare-sampling"));
  showModels();
  models.listeners.push(showModels);
  byId("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("compare-prompt").addEventListener("keydown", (event) => {
    if (!isSendKey(event)) return;
    event.preventDefault();
    run();
  });
  byId("compare-stop").addEventListener("click", () => {
    stopCompare();
    byId("compare-run").focus();
  });
  byId("compare-history-drop").addEventListener("click", () => {
    state.history = [];
    showHistory();
    byId("compare-prompt").focus();
  });
  for (const choice of document.getElementsByName("compare-view")) choice.addEventListener("change", showColumns);
}

// Stop all replies that stream; return whether there were any.
export function stopCompare() {
  if (!state.abort) return false;
  state.abort.abort();
  return true;
}

// Take over the messages of a conversation: the last question becomes the prompt, the others come before it.
export function fillCompare(messages) {
  stopCompare();
  const system = messages.find((message) => message.role === "system");
  const others = messages.filter((message) => message.role !== "system");
  const last = others.pop();
  byId("compare-system").value = system ? system.content : "";
  byId("compare-prompt").value = last ? last.content : "";
  state.history = others;
  showHistory();
  byId("compare-prompt").focus();
}

function showHistory() {
  byId("compare-history").hidden = !state.history.length;
  byId("compare-history-title").textContent = "After a conversation of " + countWords(state.history.length, "message");
  fill(byId("compare-history-list"), state.history.map((message) =>
    build("li", { dir: "auto" }, build("strong", {}, message.role === "user" ? "You: " : "Reply: "), shorten(showText(message.content), 400))));
}

// The base comes first, because adapters are compared with it. All are chosen until there are more than four.
function showModels() {
  const list = sortModels();
  if (!state.chosen) {
    const stored = loadSettings().compared;
    const known = Array.isArray(stored) ? list.filter((model) => stored.includes(model.id)) : [];
    state.chosen = new Set((known.length > 1 ? known : list.slice(0, 4)).map((model) => model.id));
    if (!list.length) state.chosen = null;
  }
  fill(byId("compare-models"), list.map((model, number) => {
    const box = build("input", { type: "checkbox", id: "compare-model-" + number, checked: Boolean(state.chosen && state.chosen.has(model.id)) });
    box.addEventListener("change", () => {
      if (box.checked) state.chosen.add(model.id);
      else state.chosen.delete(model.id);
      saveSettings({ compared: Array.from(state.chosen) });
    });
    return build("label", { class: "choice", for: box.id, dir: "auto" }, box, " ", labelModel(model));
  }));
}

function sortModels() {
  return [...models.list].sort((first, second) => Number(second.isBase) - Number(first.isBase));
}

async function run() {
  const prompt = byId("compare-prompt").value;
  const chosen = sortModels().filter((model) => state.chosen && state.chosen.has(model.id));
  if (!prompt.trim() || !chosen.length) {
    byId("compare-state").textContent = prompt.trim() ? "Choose at least one model." : "Write a prompt first.";
    return;
  }
  if (state.abort) return;
  const abort = new AbortController();
  const system = byId("compare-system").value;
  const body = {
    messages: [...(system.trim() ? [{ role: "system", content: repairText(system) }] : []), ...state.history, { role: "user", content: repairText(prompt) }],
    ...state.readSampling(),
    logprobs: true,
    top_logprobs: TOP_LOGPROBS,
  };
  state.abort = abort;
  state.columns = chosen.map((model, number) => new Column(model, number));
  hideDetail();
  fill(byId("compare-columns"), state.columns.map((column) => column.node));
  byId("compare-tools").hidden = true;
  showRunning(true);
  byId("compare-state").textContent = "Asking " + countWords(chosen.length, "model") + " …";
  await Promise.all(state.columns.map((column) => column.run(body, abort.signal)));
  state.abort = null;
  showRunning(false);
  byId("compare-tools").hidden = false;
  if (chosen.length < 2 && viewOf() === "differences") document.querySelector("input[name=compare-view][value=text]").checked = true;
  const failed = state.columns.filter((column) => column.error).length;
  byId("compare-state").textContent = failed ? countWords(failed, "model") + " did not answer." : "";
  showColumns();
  announce(countWords(chosen.length - failed, "reply").replace(/replys$/, "replies") + " finished.");
}

function showRunning(running) {
  const hadFocus = document.activeElement === byId("compare-run") || document.activeElement === byId("compare-stop");
  byId("compare-run").hidden = running;
  byId("compare-stop").hidden = !running;
  if (hadFocus) byId(running ? "compare-stop" : "compare-run").focus();
}

function viewOf() {
  const chosen = Array.from(document.getElementsByName("compare-view")).find((choice) => choice.checked);
  return chosen ? chosen.value : "text";
}

function showColumns() {
  byId("compare-tools").classList.toggle("single", state.columns.length < 2);
  const view = viewOf();
  hideDetail();
  state.columns.forEach((column, number) => { if (column.finished) column.show(view, number === 0 ? null : state.columns[0]); });
  const legend = byId("compare-legend");
  if (view === "differences") {
    fill(legend, "Beside the reference: ", build("ins", {}, "added words"), ", ", build("del", {}, "removed words"));
  } else if (view === "probabilities") {
    fill(legend, "Probability of each token: ", LEVELS.map(([, name, words]) => [build("span", { class: "token " + name }, words), " "]), "Point at a token, or move with the arrow keys.");
  } else fill(legend);
}
