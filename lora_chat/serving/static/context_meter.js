// The tokens of the next prompt: their number beside the model's limit, and the exact ids in a dialog.

import { tokenizeMessages } from "./api.js";
import { build, byId, debounce } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { countWords, formatCount, showToken } from "./text.js";

const MAX_SHOWN = 4000;
const DELAY = 350;

// Connect the meter. read() returns {model, messages, reserved, isDraft} of the next prompt, or null if there is none.
export function startMeter(read) {
  const state = { answer: null, abort: null };
  byId("context").addEventListener("click", () => openTokens(state.answer));
  const ask = debounce(async () => {
    if (state.abort) state.abort.abort();
    state.abort = new AbortController();
    const next = read();
    if (!next) return show(state, null, null, 0);
    try {
      const answer = await tokenizeMessages(next.model.id, next.messages, state.abort.signal);
      show(state, answer, answer.context || next.model.context, next.reserved, next.isDraft ? "" : "last prompt ");
    } catch (error) {
      if (error.name !== "AbortError") show(state, null, null, 0, "", "tokens not counted");
    }
  }, DELAY);
  show(state, null, null, 0);
  return ask;
}

function show(state, answer, context, reserved, label = "", text = "0 tokens") {
  state.answer = answer;
  const meter = byId("context-meter");
  const button = byId("context");
  button.disabled = !answer;
  button.classList.remove("full");
  meter.hidden = !answer || !context;
  if (!answer) {
    byId("context-text").textContent = text;
    return;
  }
  const left = context ? context - answer.count : Infinity;
  meter.max = context || answer.count || 1;
  meter.value = answer.count;
  const note = left <= 0 ? ": too long for this model" : left < reserved ? ": " + formatCount(left) + " left for the reply" : "";
  byId("context-text").textContent = label + (context ? formatCount(answer.count) + " of " + countWords(context, "token") : countWords(answer.count, "token")) + note;
  button.classList.toggle("full", left < reserved);
}

function openTokens(answer) {
  if (!answer) return;
  const rows = answer.tokens.slice(0, MAX_SHOWN).map((token, number) =>
    build("tr", {}, build("td", {}, number), build("td", {}, String(token.id)), build("td", {}, build("code", {}, showToken(String(token.text ?? ""))))));
  const head = build("tr", {}, ["Position", "Id", "Text"].map((name) => build("th", { scope: "col" }, name)));
  const left = answer.tokens.length - rows.length;
  openDialog("Tokens of the next prompt", [
    build("p", { class: "small muted" }, countWords(answer.count, "token") + ", exactly as the model reads them." + (left > 0 ? " The first " + formatCount(MAX_SHOWN) + " are shown." : "")),
    build("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Tokens" }, build("table", { class: "tokens" }, build("thead", {}, head), build("tbody", {}, rows))),
  ]);
}
