// Judge: two replies in random order without names, and one vote for each pair, by keyboard or buttons.

import { toApiError } from "./api_error.js";
import { askToConfirm } from "./dialogs.js";
import { announce, build, buildButton, byId, fill } from "./dom.js";
import { enter, judgeApi } from "./judge_api.js";
import { CHOICES, buildBar, buildPair } from "./judge_pair.js";
import { buildResult } from "./judge_result.js";

const SETTLE_MILLISECONDS = 400; // a key that was meant for the pair before does not vote on the next one
const RETRY_MILLISECONDS = 3000;

let root = null;
let parts = null; // nodes of the frame
let pair = null;
let shownAt = 0;
let busy = false;
let waiting = null; // controller of the request for the next pair

// Build the view when it is first shown.
export function startJudge(section) {
  root = section;
  document.addEventListener("keydown", pressKey);
  document.addEventListener("judge-link", open);
  open();
}

async function open() {
  parts = null;
  if (waiting) waiting.abort();
  waiting = null;
  fill(root, build("p", { class: "muted", role: "status" }, "Opening…"));
  try {
    await enter();
    const state = await judgeApi.state();
    if (!state.available) showProblem("Nothing to judge here", state.reason);
    else if (state.finished) showFinishButton(state, "This judgement is finished.");
    else showFrame(state);
  } catch (error) {
    const shown = toApiError(error);
    if (shown.kind === "network" || shown.kind === "server") showProblem("The judge page did not open", shown.message, true);
    else showProblem("This page needs its link", describe(shown));
  }
}

const LINK_CODES = ["judge_key_needed", "judge_link_spent"];

function describe(error) {
  if (!LINK_CODES.includes(error.code)) return error.message;
  const spent = error.code === "judge_link_spent" ? "This link was used already. If you did not use it, somebody else on this machine did. " : "";
  return spent + "Open the newest link on the terminal of the server, which begins with \u201cJudge\u201d. Each link works once, so that only you can vote.";
}

function showProblem(title, text, again = false) {
  const retry = again ? buildButton("Try again", open, { class: "primary" }) : null;
  fill(root, build("div", { class: "card judge-problem" }, build("h2", {}, title), build("p", {}, text), retry));
}

// Show the frame around the pairs, and load the first one.
function showFrame(progress) {
  const bar = buildBar({ vote: vote, note: toggleNote, undo: undo, finish: askToFinish });
  parts = {
    ...bar,
    count: build("p", { class: "muted small" }),
    meter: build("progress", { max: "1", value: "0", "aria-label": "Judged pairs" }),
    message: build("p", { class: "strip", role: "status", hidden: true }),
    stage: build("div", { class: "judge-stage" }),
  };
  parts.bar.addEventListener("keydown", leaveNote);
  const head = build("div", { class: "judge-head" }, build("h2", {}, "Which reply is better?"), parts.count, parts.meter);
  fill(root, head, parts.message, parts.stage, parts.bar);
  showProgress(progress);
  loadNext();
}

function showProgress(progress) {
  const open = progress.total - progress.equal - progress.too_long - progress.failed;
  const left = [
    progress.equal ? progress.equal + " with equal replies not shown" : "",
    progress.too_long ? progress.too_long + " too long" : "",
    progress.failed ? progress.failed + " failed" : "",
  ].filter(Boolean);
  parts.count.textContent = progress.judged + " of " + open + " pairs judged" + (left.length ? " (" + left.join(", ") + ")" : "");
  parts.meter.setAttribute("max", String(Math.max(1, open)));
  parts.meter.setAttribute("value", String(progress.judged));
  parts.undo.disabled = !progress.can_undo;
  parts.finish.disabled = !progress.judged;
}

// Load the next pair; both replies appear at the same moment.
async function loadNext() {
  pair = null;
  setBusy(true);
  clearNote();
  fill(parts.stage, build("p", { class: "card muted judge-wait", role: "status" }, "The replies are being written…"));
  const controller = new AbortController();
  if (waiting) waiting.abort();
  waiting = controller;
  while (waiting === controller) {
    try {
      const answer = await judgeApi.next(controller.signal);
      if (waiting !== controller) return;
      showMessage("");
      showProgress(answer.progress);
      if (answer.state === "pair") return showPair(answer);
      if (answer.state === "done") return showDone(answer.progress);
    } catch (error) {
      const shown = toApiError(error);
      if (!shown || waiting !== controller) return;
      if (shown.code === "judge_key_needed" || shown.code === "nothing_to_judge") return showProblem("This page needs its link", describe(shown));
      showMessage(shown.message);
      await new Promise((resolve) => { setTimeout(resolve, RETRY_MILLISECONDS); });
    }
  }
}

function showPair(answer) {
  pair = answer;
  shownAt = performance.now();
  const heading = build("h3", { class: "judge-number", tabindex: "-1" }, "Pair " + answer.number);
  fill(parts.stage, buildPair(answer, heading));
  setBusy(false);
  if (isVisible()) {
    byId("content").scrollTop = 0;
    scrollTo(0, 0); // on a phone the document scrolls
    heading.focus({ preventScroll: true });
  }
  announce("Pair " + answer.number + ". Both replies are there.");
}

function showDone(progress) {
  showFinishButton(progress, progress.judged ? "All pairs are judged." : "There is no pair to judge: every pair was left out.");
}

// Show that no pair is left. Until the result is shown, the last vote can be undone.
function showFinishButton(progress, text) {
  pair = null;
  waiting = null;
  const result = buildButton("Show the result and the names", finish, { class: "primary" });
  const back = progress.can_undo ? buildButton("Undo the last vote", undo) : null;
  if (!parts) showFrameWithoutPair();
  setBusy(true);
  parts.undo.disabled = !progress.can_undo;
  fill(parts.stage, build("div", { class: "card judge-done" }, build("h3", { tabindex: "-1" }, text), build("div", { class: "row" }, result, back)));
  parts.bar.hidden = true;
  if (isVisible()) result.focus();
}

function showFrameWithoutPair() {
  const bar = buildBar({ vote: vote, note: toggleNote, undo: undo, finish: askToFinish });
  parts = { ...bar, count: build("p"), meter: build("progress"), message: build("p", { class: "strip", role: "status", hidden: true }), stage: build("div") };
  fill(root, parts.message, parts.stage, parts.bar);
}

function setBusy(value) {
  busy = value;
  for (const button of parts.choices) button.disabled = value;
  parts.bar.hidden = false;
}

function showMessage(text) {
  parts.message.hidden = !text;
  parts.message.className = "strip bad";
  parts.message.textContent = text;
}

async function vote(choice) {
  if (busy || !pair) return;
  setBusy(true);
  try {
    const answer = await judgeApi.vote(pair.pair, choice.value, parts.text.value.trim());
    showMessage("");
    showProgress(answer.progress);
    announce(choice.done + ". Stored.");
    loadNext();
  } catch (error) {
    const shown = toApiError(error);
    if (shown.code === "vote_refused") return loadNext();
    setBusy(false);
    showMessage("The vote is not stored. " + shown.message + " Vote again when it answers.");
  }
}

async function undo() {
  if (parts.undo.disabled) return;
  parts.undo.disabled = true;
  try {
    await judgeApi.undo();
    announce("The last vote is withdrawn.");
    loadNext();
  } catch (error) {
    showMessage(toApiError(error).message);
    parts.undo.disabled = false;
  }
}

async function askToFinish() {
  if (parts.finish.disabled) return;
  const agreed = await askToConfirm("Show the result?", "The judgement ends here, because you would know which model is ahead. Pairs without a vote can be judged after a new start of the server.", "End and show the result");
  if (agreed) finish();
}

async function finish() {
  try {
    const result = await judgeApi.finish();
    if (waiting) waiting.abort();
    waiting = null;
    pair = null;
    const title = build("h2", { tabindex: "-1" }, "Result");
    fill(root, build("div", { class: "card judge-result" }, title, buildResult(result), build("p", { class: "small muted" }, "The votes are in judgements.jsonl of the run; report.html shows the result.")));
    parts = null;
    if (isVisible()) title.focus();
    announce(result.text);
  } catch (error) {
    showMessage(toApiError(error).message);
  }
}

function toggleNote() {
  const open = parts.field.hidden;
  parts.field.hidden = !open;
  parts.note.setAttribute("aria-expanded", String(open));
  if (open) parts.text.focus();
}

function clearNote() {
  parts.text.value = "";
  parts.field.hidden = true;
  parts.note.setAttribute("aria-expanded", "false");
}

// Esc or Ctrl+Enter in the note goes back to the pair; the text stays.
function leaveNote(event) {
  if (event.target !== parts.text || event.isComposing) return;
  if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
    event.preventDefault();
    const heading = parts.stage.querySelector(".judge-number");
    if (heading) heading.focus({ preventScroll: true });
  }
}

function isVisible() {
  return !root.hidden;
}

function isScrollable() {
  return [byId("content"), document.scrollingElement].some((node) => node.scrollHeight > node.clientHeight + 2);
}

// Vote by keyboard. Up and down scroll while a part of the pair is not on the screen.
function pressKey(event) {
  if (!parts || !isVisible() || event.defaultPrevented || event.isComposing || event.repeat) return;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target instanceof HTMLElement && event.target.matches("textarea, input, select, [role=tab], pre, .scroll")) return;
  const key = event.key.toLowerCase();
  if (key === "n" && pair) {
    event.preventDefault();
    toggleNote();
  } else if (key === "u") {
    event.preventDefault();
    undo();
  } else {
    const choice = CHOICES.find((each) => each.keys.includes(event.key));
    if (!choice || !pair) return;
    const vertical = event.key === "ArrowUp" || event.key === "ArrowDown";
    if (vertical && isScrollable()) return;
    event.preventDefault();
    if (performance.now() - shownAt >= SETTLE_MILLISECONDS) vote(choice);
  }
}
