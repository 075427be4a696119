// Blocks of Markdown: text -> plain data. Lines are read once from top to bottom, and each nesting level reads only its
// own part again, so time is linear in the text. No regular expression here can backtrack.

const MAX_DEPTH = 8;
const MAX_COLUMNS = 40;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?: |$)/;
const MARKER = /^([ \t]*)([-*+]|\d{1,9}[.)])(?: |\t|$)/;

// Return the blocks of a text: [{kind, first, next, …}] with `first` and `next` as line numbers of `lines`.
export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const block = readBlock(lines, at, depth);
    block.first = at;
    at = block.next;
    blocks.push(block);
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence && opensFence(line, fence)) return readFence(lines, at, fence[1]);
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, text: cutClosingMarks(line.trim().slice(heading[1].length)), next: at + 1 };
  if (isRule(line)) return { kind: "rule", next: at + 1 };
  if (depth < MAX_DEPTH && isQuote(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && MARKER.test(line)) return readList(lines, at, depth);
  const alignments = readDelimiters(lines, at);
  if (alignments) return readTable(lines, at, alignments);
  return readParagraph(lines, at, depth);
}

function isBlank(line) {
  return line.trim() === "";
}

// Return the columns before the first other character; a tab reaches to the next multiple of four.
function indentOf(line) {
  let columns = 0;
  for (let at = 0; line[at] === " " || line[at] === "\t"; at += 1) columns += line[at] === " " ? 1 : 4 - (columns % 4);
  return columns;
}

// Return a line without a number of columns of its indentation. A tab that is cut leaves spaces; other tabs stay.
function cutIndent(line, width) {
  let columns = 0;
  let at = 0;
  for (; columns < width && (line[at] === " " || line[at] === "\t"); at += 1) columns += line[at] === " " ? 1 : 4 - (columns % 4);
  return (columns > width ? " ".repeat(columns - width) : "") + line.slice(at);
}

function opensFence(line, fence) {
  return fence[1][0] === "~" || !line.slice(fence[0].length).includes("`");
}

function readFence(lines, at, marks) {
  const indent = indentOf(lines[at]);
  const content = [];
  let next = at + 1;
  let closed = false;
  for (; next < lines.length && !closed; next += 1) {
    const text = lines[next].trim();
    closed = text.length >= marks.length && text[0] === marks[0] && isRun(text) && indentOf(lines[next]) < 4;
    if (!closed) content.push(cutIndent(lines[next], indent));
  }
  return { kind: "code", language: lines[at].trim().slice(marks.length).trim().split(" ")[0].slice(0, 40), text: content.join("\n"), closed: closed, next: next };
}

function isRun(text) {
  for (let at = 1; at < text.length; at += 1) if (text[at] !== text[0]) return false;
  return true;
}

function cutClosingMarks(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  return (end === 0 || text[end - 1] === " " ? text.slice(0, end) : text).trim();
}

function isRule(line) {
  if (line.length > 200 || indentOf(line) > 3) return false;
  const marks = line.split(" ").join("");
  return marks.length >= 3 && "-*_".includes(marks[0]) && isRun(marks);
}

function isQuote(line) {
  return line.trimStart()[0] === ">" && indentOf(line) < 4;
}

function readQuote(lines, at, depth) {
  const content = [];
  let next = at;
  for (; next < lines.length && isQuote(lines[next]); next += 1) {
    const start = lines[next].indexOf(">") + 1;
    content.push(lines[next].slice(lines[next][start] === " " ? start + 1 : start));
  }
  return { kind: "quote", blocks: parseBlocks(content, depth + 1), next: next };
}

// A line belongs to an item if it is indented by two spaces more than the marker, which is more lenient than CommonMark,
// because models often indent by two spaces below "1.".
function readList(lines, at, depth) {
  const first = MARKER.exec(lines[at]);
  const ordered = first[2].length > 1;
  const kind = first[2][first[2].length - 1];
  const indent = indentOf(lines[at]);
  const items = [];
  let next = at;
  while (next < lines.length) {
    const marker = MARKER.exec(lines[next]);
    if (!marker || marker[2][marker[2].length - 1] !== kind || indentOf(lines[next]) > indent + 1 || isRule(lines[next])) break;
    const width = indentOf(lines[next]) + marker[2].length + 1;
    const content = [lines[next].slice(marker[0].length)];
    next += 1;
    let blanks = 0;
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      if (isBlank(line)) {
        blanks += 1;
        continue;
      }
      const inside = indentOf(line) >= indent + 2;
      if (!inside && (blanks || startsBlock(line))) break;
      for (; blanks; blanks -= 1) content.push("");
      content.push(cutIndent(line, width));
    }
    items.push(parseBlocks(content, depth + 1));
    if (blanks && !(next < lines.length && MARKER.test(lines[next]))) {
      next -= blanks;
      break;
    }
  }
  return { kind: "list", ordered: ordered, start: ordered ? parseInt(first[2], 10) : 1, items: items, next: next };
}

function startsBlock(line) {
  const fence = FENCE.exec(line);
  return Boolean(fence && opensFence(line, fence)) || HEADING.test(line) || isRule(line) || isQuote(line) || MARKER.test(line);
}

// An ordered list that does not begin with 1 does not interrupt a paragraph, so "1984. A year" stays text.
function interruptsParagraph(line, depth) {
  const marker = MARKER.exec(line);
  if (marker && (depth >= MAX_DEPTH || (marker[2].length > 1 && parseInt(marker[2], 10) !== 1))) return false;
  if (depth >= MAX_DEPTH && isQuote(line)) return false;
  return startsBlock(line);
}

function readParagraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next]) && !interruptsParagraph(lines[next], depth) && !readDelimiters(lines, next)) next += 1;
  return { kind: "paragraph", text: lines.slice(at, next).map((line) => line.trim()).join("\n"), next: next };
}

// Return the alignments of a table whose header is at a line, or null if the next line does not delimit a header.
function readDelimiters(lines, at) {
  const next = lines[at + 1];
  if (next === undefined || next.length > 1000 || !next.includes("-") || !next.includes("|") || !lines[at].includes("|")) return null;
  const cells = splitCells(next);
  if (cells.length > MAX_COLUMNS || splitCells(lines[at]).length !== cells.length) return null;
  const alignments = [];
  for (const cell of cells) {
    if (!/^:?-+:?$/.test(cell)) return null;
    alignments.push(cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left");
  }
  return alignments;
}

function splitCells(line) {
  const text = line.trim();
  const cells = [];
  let cell = "";
  let start = text[0] === "|" ? 1 : 0;
  let at = start;
  for (; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      cell += text.slice(start, at) + "|";
      at += 1;
      start = at + 1;
    } else if (text[at] === "|") {
      cells.push((cell + text.slice(start, at)).trim());
      cell = "";
      start = at + 1;
      if (cells.length > MAX_COLUMNS) return cells;
    }
  }
  if (start < text.length || cell) cells.push((cell + text.slice(start)).trim());
  return cells;
}

function readTable(lines, at, alignments) {
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && !isBlank(lines[next]) && lines[next].includes("|") && !startsBlock(lines[next]); next += 1) {
    rows.push(splitCells(lines[next]).slice(0, alignments.length));
  }
  return { kind: "table", alignments: alignments, header: splitCells(lines[at]), rows: rows, next: next };
}
