// Requests of the judge. The link on the terminal has a token in its fragment, which opens the page once: the page
// exchanges it for a key, which stays in this tab and is sent in a header that other sites cannot send.

import { requestJson } from "./api.js";

const STORED = "lora-chat-judge-key";
const FRAGMENT = /^#judge=([A-Za-z0-9_-]{1,100})$/;
let token = "";
let key = ""; // used where the browser keeps nothing

// Take the token out of the address, so that it stays neither in the address bar nor in the history.
function takeToken() {
  const match = FRAGMENT.exec(location.hash);
  if (!match) return;
  token = match[1];
  history.replaceState(null, "", "#judge");
}
takeToken();
// A link that is opened in a tab that already has the page. The tabs of the page then show the view.
addEventListener("hashchange", () => {
  if (!FRAGMENT.test(location.hash)) return;
  takeToken();
  document.dispatchEvent(new CustomEvent("judge-link"));
});

function readKey() {
  try {
    return sessionStorage.getItem(STORED) || "";
  } catch {
    return key;
  }
}

function keepKey(value) {
  key = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch { /* without storage the key lasts until the page is loaded again */ }
}

// Exchange the token of the link for a key, if the page was opened with one. Throws ApiError for a spent link.
export async function enter() {
  if (!token) return;
  const spent = token;
  try {
    const answer = await requestJson("judge/enter", { method: "POST", body: { token: spent } });
    keepKey(String(answer.key));
  } catch (error) {
    // The key of an earlier visit still works after a reload with the same link.
    if (error.kind === "network" || !readKey()) throw error;
  }
  token = "";
}

function ask(path, body = null, signal = null) {
  const headers = { "X-Judge-Key": readKey() };
  return requestJson(path, { method: body === null ? "GET" : "POST", body: body, signal: signal, headers: headers });
}

export const judgeApi = {
  state: () => ask("judge/state"),
  next: (signal) => ask("judge/next", null, signal),
  vote: (pair, choice, note) => ask("judge/vote", { pair: pair, choice: choice, note: note }),
  undo: () => ask("judge/undo", {}),
  finish: () => ask("judge/finish", {}),
};
