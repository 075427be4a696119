// Markdown -> nodes, whole or while a reply streams. Text reaches the page only as text nodes.
//
// renderMarkdown(text)          returns a fragment
// new MarkdownView(container)   .update(text) for a text that grows, .finish(text) at its end

import { build } from "./dom.js";
import { writeToClipboard } from "./clipboard.js";
import { parseBlocks } from "./markdown_blocks.js";
import { appendInline } from "./markdown_inline.js";
import { showText } from "./text.js";

const MAX_TEXT = 120_000;
const MAX_PARAGRAPH = 40_000;
const MAX_ROWS = 500;

export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  const shown = text.slice(0, MAX_TEXT);
  appendBlocks(fragment, parseBlocks(shown.replace(/\r\n?/g, "\n").split("\n")));
  if (text.length > MAX_TEXT) fragment.append(renderPlain(text.slice(MAX_TEXT)));
  return fragment;
}

function renderPlain(text) {
  return build("p", { class: "plain-text", dir: "auto" }, showText(text));
}

function appendBlocks(parent, blocks) {
  for (const block of blocks) parent.append(RENDERERS[block.kind](block));
}

const RENDERERS = {
  // Headings of a reply are below the headings of the page.
  heading: (block) => buildInline("h" + Math.min(6, block.level + 3), block.text),
  paragraph: (block) => (block.text.length > MAX_PARAGRAPH ? renderPlain(block.text) : buildInline("p", block.text)),
  rule: () => build("hr"),
  quote: (block) => build("blockquote", { dir: "auto" }, buildBlocks(block.blocks)),
  code: renderCode,
  list: renderList,
  table: renderTable,
};

// Content comes before dir="auto", below which the browser looks for the direction again at each insertion.
function buildInline(tag, text, attributes = {}) {
  const fragment = document.createDocumentFragment();
  appendInline(fragment, text);
  return build(tag, { ...attributes, dir: "auto" }, fragment);
}

function buildBlocks(blocks) {
  const fragment = document.createDocumentFragment();
  appendBlocks(fragment, blocks);
  return fragment;
}

function renderCode(block) {
  const copy = build("button", { type: "button", class: "quiet copy-code" }, "Copy");
  copy.addEventListener("click", () => writeToClipboard(block.text, copy));
  const name = showText(block.language).replace(/\s/g, " ") || "code";
  const label = build("div", { class: "code-head small muted" }, build("span", {}, name), copy);
  const code = build("pre", { tabindex: "0", dir: "ltr", role: "group", "aria-label": "Code: " + name }, build("code", {}, showText(block.text)));
  return build("div", { class: "code" }, label, code);
}

function renderList(block) {
  const items = block.items.map((blocks) => {
    // An item with one paragraph is set tight; its nested lists follow directly.
    const [first, ...others] = blocks;
    if (!first || first.kind !== "paragraph" || others.some((other) => other.kind !== "list")) {
      return build("li", { dir: "auto" }, buildBlocks(blocks));
    }
    const item = buildInline("li", readTask(first.text));
    item.append(buildBlocks(others));
    return item;
  });
  return build(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null }, items);
}

function readTask(text) {
  if (text.startsWith("[ ] ")) return "☐ " + text.slice(4);
  return text.startsWith("[x] ") || text.startsWith("[X] ") ? "☑ " + text.slice(4) : text;
}

function renderTable(block) {
  const row = (cells, tag) =>
    build("tr", {}, block.alignments.map((alignment, number) =>
      buildInline(tag, cells[number] || "", { class: "align-" + alignment, scope: tag === "th" ? "col" : null })));
  const rows = block.rows.slice(0, MAX_ROWS).map((cells) => row(cells, "td"));
  const left = block.rows.length - rows.length;
  if (left > 0) rows.push(build("tr", {}, build("td", { colspan: block.alignments.length }, left + " more rows are not shown")));
  const table = build("table", {}, build("thead", {}, row(block.header, "th")), build("tbody", {}, rows));
  return build("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, table);
}

// A view of a text that grows. A block is final once another block has begun with two complete lines (a table
// needs both), so only the last blocks are built again. If building takes long, the next time waits longer.
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.done = 0; // length of the text whose blocks are final
    this.final = 0; // number of nodes that are final
    this.timer = 0;
    this.pause = 40;
  }

  // Show a text that continues the text of the last call, soon.
  update(text) {
    this.text = text;
    if (!this.timer) this.timer = setTimeout(() => this.draw(), this.pause);
  }

  // Show the whole text now.
  finish(text) {
    clearTimeout(this.timer);
    this.text = text;
    this.draw();
  }

  draw() {
    this.timer = 0;
    const began = performance.now();
    const rest = this.text.slice(this.done);
    while (this.container.childNodes.length > this.final) this.container.lastChild.remove();
    if (this.text.length > MAX_TEXT) this.container.append(renderPlain(rest));
    else this.drawBlocks(rest.replace(/\r\n?/g, "\n"), rest.includes("\r"));
    this.pause = Math.min(2000, Math.max(40, 6 * (performance.now() - began)));
  }

  drawBlocks(rest, keep) {
    const lines = rest.split("\n");
    const blocks = parseBlocks(lines);
    this.container.append(buildBlocks(blocks));
    const last = blocks[blocks.length - 1];
    if (keep || blocks.length < 2 || last.first >= lines.length - 2) return;
    for (let number = 0; number < last.first; number += 1) this.done += lines[number].length + 1;
    this.final += blocks.length - 1;
  }
}
