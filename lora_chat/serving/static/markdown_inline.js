// Inline Markdown: text -> nodes. Code, links and emphasis; images and HTML stay text. Time is linear in the text.

import { build } from "./dom.js";
import { appendTokens, describeRun, matchRuns } from "./markdown_emphasis.js";
import { showText } from "./text.js";

const MAX_ADDRESS = 2000;
const ESCAPABLE = "\\`*_{}[]<>()#+-.!|~";
const ENDS = " \n\t<>\"`";

// Append the inline content of a text to a node.
export function appendInline(parent, text) {
  appendTokens(parent, readTokens(text), makeNode);
}

// Return the address as a URL if it may be a link: http or https, without a user name, which could imitate a host.
function checkAddress(address) {
  if (address.length > MAX_ADDRESS || !/^https?:\/\//i.test(address)) return null;
  try {
    const url = new URL(address);
    return (url.protocol === "http:" || url.protocol === "https:") && !url.username && !url.password ? url : null;
  } catch {
    return null;
  }
}

function readTokens(text) {
  const tokens = [];
  const brackets = []; // tokens that are an open bracket
  const codes = findCodeRuns(text);
  let start = 0;
  let at = 0;
  const flush = (end) => { if (end > start) tokens.push({ kind: "text", text: text.slice(start, end) }); };
  const take = (end, token) => { flush(at); tokens.push(token); at = end; start = end; };

  while (at < text.length) {
    const character = text[at];
    if (character === "\\" && at + 1 < text.length && ESCAPABLE.includes(text[at + 1])) {
      take(at + 2, { kind: "text", text: text[at + 1] });
    } else if (character === "`") {
      const end = countRun(text, at);
      const close = findCode(codes, end - at, end);
      if (close === -1) at = end;
      else take(close + end - at, { kind: "code", text: trimCode(text.slice(end, close)) });
    } else if (character === "*" || character === "_" || character === "~") {
      const end = countRun(text, at);
      take(end, describeRun(character, end - at, characterBefore(text, at), characterAfter(text, end)));
    } else if (character === "[" || (character === "!" && text[at + 1] === "[")) {
      const token = { kind: "text", text: character === "!" ? "![" : "[", at: tokens.length + (at > start ? 1 : 0), image: character === "!" };
      take(at + token.text.length, token);
      brackets.push(token);
    } else if (character === "]" && brackets.length) {
      const opener = brackets.pop();
      const target = readTarget(text, at + 1);
      const url = target && checkAddress(target.address);
      if (url) {
        flush(at);
        const children = tokens.splice(opener.at).slice(1).flatMap((token) => (token.kind === "link" ? token.children : [token]));
        tokens.push({ kind: "link", url: url, children: children, image: opener.image });
        brackets.length = 0; // a link has no links inside
        at = target.end;
        start = at;
      } else at += 1;
    } else if ((character === "h" || character === "H") && !isWord(characterBefore(text, at)) && /^https?:\/\//i.test(text.slice(at, at + 8))) {
      const end = findAddressEnd(text, at);
      const url = checkAddress(text.slice(at, end));
      if (url) take(end, { kind: "link", url: url, children: [{ kind: "text", text: text.slice(at, end) }], image: false });
      else at = end;
    } else at += 1;
  }
  flush(at);
  matchRuns(tokens);
  return tokens;
}

function isWord(character) {
  return character !== "" && /[\p{L}\p{N}]/u.test(character);
}

function characterBefore(text, at) {
  return at === 0 ? "" : at > 1 && /[\udc00-\udfff]/.test(text[at - 1]) ? text.slice(at - 2, at) : text[at - 1];
}

function characterAfter(text, at) {
  return at < text.length ? String.fromCodePoint(text.codePointAt(at)) : "";
}

function countRun(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end;
}

// Return the positions of the runs of backticks by their length, so that each search for a closing run is short.
function findCodeRuns(text) {
  const runs = new Map();
  for (let at = text.indexOf("`"); at !== -1; at = text.indexOf("`", at)) {
    const end = countRun(text, at);
    if (!runs.has(end - at)) runs.set(end - at, { positions: [], next: 0 });
    runs.get(end - at).positions.push(at);
    at = end;
  }
  return runs;
}

function findCode(codes, length, from) {
  const run = codes.get(length);
  while (run.next < run.positions.length && run.positions[run.next] < from) run.next += 1;
  return run.next < run.positions.length ? run.positions[run.next] : -1;
}

function trimCode(text) {
  const inner = text.length > 2 && text[0] === " " && text[text.length - 1] === " " && text.trim() ? text.slice(1, -1) : text;
  return inner.split("\n").join(" ");
}

// Return the address in "(address)" or "(address "title")" at a position, and where it ends.
function readTarget(text, at) {
  if (text[at] !== "(") return null;
  let depth = 0;
  for (let end = at + 1; end < text.length && end - at <= MAX_ADDRESS; end += 1) {
    const character = text[end];
    if (character === "(") depth += 1;
    else if (character === ")" && depth > 0) depth -= 1;
    else if (character === ")") return { address: text.slice(at + 1, end), end: end + 1 };
    else if (character === " " || character === "\n") {
      const address = text.slice(at + 1, end);
      const close = text.slice(end, end + 500).indexOf(")");
      const title = close === -1 ? "" : text.slice(end, end + close).trim();
      return title === "" || (title.length > 1 && `"'`.includes(title[0]) && title[0] === title[title.length - 1]) ? (close === -1 ? null : { address: address, end: end + close + 1 }) : null;
    }
  }
  return null;
}

function findAddressEnd(text, at) {
  let end = at;
  let open = 0;
  for (; end < text.length && end - at < MAX_ADDRESS && !ENDS.includes(text[end]); end += 1) {
    if (text[end] === "(") open += 1;
    else if (text[end] === ")" && --open < 0) break;
  }
  while (end > at && ".,;:!?'*_~]".includes(text[end - 1])) end -= 1;
  return Math.max(end, at + 1);
}

function makeNode(token) {
  if (token.kind === "code") return build("code", { dir: "ltr" }, showText(token.text));
  if (token.kind !== "link") return document.createTextNode(showText(token.text));
  const link = build("a", { href: token.url.href, rel: "noopener noreferrer nofollow", target: "_blank" });
  matchRuns(token.children);
  appendTokens(link, token.children, makeNode);
  if (token.image) link.prepend("image: ");
  if (!link.textContent.trim()) link.append(token.url.host);
  const shown = link.textContent.trim();
  if (shown === token.url.href || shown + "/" === token.url.href) return link;
  const address = build("span", { class: "address", dir: "ltr" }, " (" + showText(decodeForReading(token.url)) + ")");
  return build("span", {}, link, address);
}

// The host stays in its ASCII form, so that look-alike letters of another alphabet show.
function decodeForReading(url) {
  return url.href.length > 120 ? url.href.slice(0, 119) + "…" : url.href;
}
