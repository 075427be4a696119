// The end of a judgement: the result with its interval and test, and which reply was whose.

import { build } from "./dom.js";
import { formatCount, shorten, showName, showText } from "./text.js";

const SHOWN_CHOICES = { left: "Reply 1", right: "Reply 2", tie: "Tie", "both bad": "Both bad" };

export function buildResult(result) {
  const first = showName(result.names.a);
  const second = showName(result.names.b);
  const rows = [
    [first + " preferred", formatCount(result.wins)],
    [second + " preferred", formatCount(result.losses)],
    ["Ties", formatCount(result.ties)],
    ["Both bad", formatCount(result.both_bad)],
    ["Equal replies, not shown", formatCount(result.equal_replies)],
    ["Win rate of " + first, formatShare(result.win_rate, result.win_rate_interval)],
    ["With ties as half", formatShare(result.half_rate, result.half_rate_interval)],
    ["Sign test, two-sided", result.p_value === null ? "–" : "p = " + formatP(result.p_value)],
    ["Votes and judges", formatCount(result.votes) + " by " + formatCount(result.judges)],
    ["Reply 1 (left) preferred", result.left.share === null ? "–" : formatPercent(result.left.share)],
  ];
  return [
    build("p", { class: "judge-verdict" }, showText(result.text)),
    result.notes.map((note) => build("p", { class: "muted small" }, showText(note))),
    build("div", { class: "scroll" }, build("table", { class: "judge-figures" }, build("tbody", {}, rows.map(([name, value]) => build("tr", {}, build("th", { scope: "row" }, name), build("td", {}, value)))))),
    result.reveal.length ? buildReveal(result) : null,
  ];
}

function buildReveal(result) {
  const head = ["Pair", "Prompt", "Reply 1", "Reply 2", "Your vote"];
  const rows = result.reveal.map((row) => {
    const winner = row.choice === "left" ? row.left : row.choice === "right" ? row.right : null;
    const vote = SHOWN_CHOICES[row.choice] + (winner === null ? "" : " (" + showName(winner, 40) + ")");
    const prompt = build("td", { dir: "auto" }, shorten(showText(row.prompt), 80));
    return build("tr", {}, build("th", { scope: "row" }, String(row.number)), prompt, build("td", {}, showName(row.left, 40)), build("td", {}, showName(row.right, 40)), build("td", {}, vote));
  });
  const table = build("table", { class: "judge-reveal" }, build("thead", {}, build("tr", {}, head.map((name) => build("th", { scope: "col" }, name)))), build("tbody", {}, rows));
  return build("details", { open: true }, build("summary", {}, "Which reply was whose"), build("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Which reply was whose" }, table));
}

function formatPercent(share) {
  return (100 * share).toFixed(1) + " %";
}

function formatShare(share, interval) {
  if (share === null) return "–";
  return formatPercent(share) + " (95 % interval " + formatPercent(interval[0]) + " to " + formatPercent(interval[1]) + ")";
}

function formatP(value) {
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}
