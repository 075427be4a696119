// The tokens of a reply with their probabilities: by pointer, by touch, and by the arrow keys.

import { build, byId, fill } from "./dom.js";
import { formatProbability, showName, showText, showToken } from "./text.js";

const MAX_TOKENS = 5000;
// Lower bound of the probability, class, and words of the legend. Each class has its own underline beside its colour.
export const LEVELS = [
  [0.9, "sure", "90 % and more"],
  [0.5, "likely", "50 to 90 %"],
  [0.2, "unsure", "20 to 50 %"],
  [0, "guess", "below 20 %"],
];

function findLevel(logprob) {
  const probability = Math.exp(Math.min(0, logprob));
  return LEVELS.find(([bound]) => probability >= bound) || LEVELS[LEVELS.length - 1];
}

// Return the list of tokens of a reply. It is one stop of the Tab key; arrow keys move between tokens.
export function renderTokens(tokens, name, id) {
  const shown = tokens.slice(0, MAX_TOKENS);
  const nodes = shown.map((token, number) => {
    const breaks = token.text.includes("\n");
    return build("span", { id: id + "-" + number, role: "option", class: "token " + findLevel(token.logprob)[1], "data-number": number, "aria-selected": "false" },
      breaks ? showText(token.text).replace(/\n/g, "⏎\n") : showText(token.text) || "·");
  });
  const list = build("div", { class: "tokens-view", role: "listbox", tabindex: "0", "aria-label": "Tokens of " + name + ", arrow keys move", dir: "auto" }, nodes);
  let active = -1;

  const select = (number) => {
    if (nodes[active]) nodes[active].setAttribute("aria-selected", "false");
    active = number;
    if (!nodes[active]) return;
    nodes[active].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", nodes[active].id);
    showDetail(shown[active], name, number, tokens.length);
  };
  const numberOf = (event) => (event.target instanceof Element && event.target.matches(".token") ? Number(event.target.dataset.number) : -1);
  list.addEventListener("pointerover", (event) => { if (numberOf(event) >= 0) select(numberOf(event)); });
  list.addEventListener("click", (event) => { if (numberOf(event) >= 0) select(numberOf(event)); });
  list.addEventListener("focus", () => { if (nodes.length && active < 0) select(0); else if (active >= 0) select(active); });
  list.addEventListener("blur", hideDetail);
  list.addEventListener("pointerleave", () => { if (document.activeElement !== list) hideDetail(); });
  list.addEventListener("keydown", (event) => {
    const to = { ArrowRight: active + 1, ArrowLeft: active - 1, ArrowDown: active + 10, ArrowUp: active - 10, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined || !nodes.length) return;
    event.preventDefault();
    select(Math.max(0, Math.min(nodes.length - 1, to)));
    nodes[active].scrollIntoView({ block: "nearest" });
  });
  return list;
}

export function hideDetail() {
  byId("token-detail").hidden = true;
}

function showDetail(token, name, number, count) {
  const detail = byId("token-detail");
  const top = token.top.some((other) => other.text === token.text) || !token.top.length ? token.top : [token, ...token.top];
  const rows = top.map((other) => {
    const chosen = other.text === token.text;
    const meter = build("meter", { min: 0, max: 1, "aria-hidden": "true" });
    meter.value = Math.exp(Math.min(0, other.logprob));
    return build("tr", { class: chosen ? "chosen" : null },
      build("th", { scope: "row" }, build("code", {}, showName(showToken(other.text), 40)), chosen ? build("span", { class: "small" }, " chosen") : null),
      build("td", {}, formatProbability(other.logprob)),
      build("td", {}, meter));
  });
  fill(detail,
    build("p", { class: "small muted" }, name + ", token " + (number + 1) + " of " + count),
    build("p", {}, build("code", { class: "big" }, showName(showToken(token.text), 40)), " ", build("strong", {}, formatProbability(token.logprob))),
    rows.length ? build("table", {}, build("caption", { class: "hidden" }, "Most probable tokens at this position"), build("tbody", {}, rows)) : null);
  detail.hidden = false;
}
