// The models of the server: which there are, which is chosen, and the checks that each one passed before it was served.

import { listModels } from "./api.js";
import { build, buildButton, byId, fill } from "./dom.js";
import { loadSettings, saveSettings } from "./conversation_store.js";
import { countWords, showName, showText } from "./text.js";

const STATES = { true: ["✓", "passed"], false: ["✗", "failed"], null: ["–", "not checked"] };

export const models = { list: [], refused: [], chosen: null, listeners: [] };

// Ask the server for its models and show them. The model chosen before stays chosen if it is still there.
export async function loadModels() {
  const answer = await listModels();
  models.list = answer.models;
  models.refused = answer.refused;
  const wanted = models.chosen ? models.chosen.id : loadSettings().model;
  const adapters = models.list.filter((model) => !model.isBase);
  models.chosen = models.list.find((model) => model.id === wanted) || adapters[0] || models.list[0] || null;
  for (const listener of models.listeners) listener();
}

// Connect the select of the chat with the models.
export function startPicker() {
  const select = byId("model");
  select.addEventListener("change", () => {
    models.chosen = models.list[Number(select.value)] || null;
    if (models.chosen) saveSettings({ model: models.chosen.id });
    for (const listener of models.listeners) listener();
  });
  models.listeners.push(() => {
    fill(select, models.list.map((model, number) => build("option", { value: number }, labelModel(model))));
    if (models.refused.length) {
      const group = document.createElement("optgroup");
      group.label = "Not served";
      for (const refusal of models.refused) group.append(build("option", { disabled: true }, showName(refusal.name, 60)));
      select.append(group);
    }
    select.disabled = !models.list.length;
    if (models.chosen) select.value = String(models.list.indexOf(models.chosen));
    showProof();
    showRefused();
  });
}

export function labelModel(model) {
  return showName(model.id, 60) + (model.isBase && model.id !== "base" ? " (base)" : "");
}

// Return "4 of 4 checks passed", "3 checks passed, 1 not checked", or that it is the base, whose checks say little.
export function describeChecks(model) {
  if (!model) return "no model";
  const count = (state) => model.checks.filter((check) => check.passed === state).length;
  const passed = count(true), failed = count(false), open = count(null);
  if (model.isBase && !failed) return "base, without adapter";
  if (!passed && !failed) return "not checked";
  if (!failed && !open) return passed + " of " + countWords(passed, "check") + " passed";
  return countWords(passed, "check") + " passed" + (failed ? ", " + failed + " failed" : "") + (open ? ", " + open + " not checked" : "");
}

function showProof() {
  const model = models.chosen;
  const badge = byId("proof-state");
  const passed = model && !model.isBase && model.checks.length > 0 && model.checks.every((check) => check.passed);
  badge.textContent = (passed ? "✓ " : "") + describeChecks(model);
  badge.className = "badge " + (passed ? "good" : model && model.isBase ? "" : "warn");
  fill(byId("proof"), model ? renderChecks(model) : build("p", { class: "muted" }, "The server serves no model."));
  byId("empty-model").textContent = describeModel(model);
  const system = byId("system");
  const own = model && model.system;
  system.placeholder = own ? showText(model.system).slice(0, 500) : "";
  byId("system-hint").textContent = own ? "Empty: the model's own system prompt, shown in grey, is used." : "Empty: the model's default is used.";
}

function describeModel(model) {
  if (!model) return "The server serves no model.";
  const checks = describeChecks(model);
  return showName(model.id, 60) + " answers" + (checks.includes(" passed") ? "; " + checks + " before it was served." : ".");
}

// Return the list of a model's checks with their results.
function renderChecks(model) {
  if (!model.checks.length) return build("p", { class: "small muted" }, model.isBase ? "The bare base, as its files are." : "The server lists no checks.");
  return build("ul", { class: "plain checks" }, model.checks.map((check) => {
    const [mark, word] = STATES[String(check.passed)];
    return build("li", { class: "check " + word.replace(" ", "-") },
      build("span", { class: "mark", "aria-hidden": "true" }, mark),
      build("span", {}, build("strong", {}, showName(check.name)), build("span", { class: "hidden" }, " " + word), check.detail ? ": " : "",
        build("span", { class: "muted" }, showText(check.detail).slice(0, 500))));
  }));
}

function showRefused() {
  byId("refused-section").hidden = !models.refused.length;
  fill(byId("refused"), models.refused.map((refusal) =>
    build("li", { class: "refusal" }, build("strong", { dir: "auto" }, showName(refusal.name)), build("span", { class: "muted" }, " " + showText(refusal.reason).slice(0, 1000)))));
}

// Show that the models are not known, with a button to ask again; null removes it.
export function showLoadFailure(error, retry) {
  const line = byId("load-failure");
  line.hidden = !error;
  fill(line, error ? build("p", { class: "error", role: "alert" }, showText(error.message) + " ", buildButton("Try again", retry)) : null);
}
