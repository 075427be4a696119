// Words that differ between two texts, by their longest common subsequence. The work is bounded.

const MAX_WORDS = 20_000;
const MAX_TABLE = 4_000_000;
const WORD = /[\p{L}\p{M}\p{N}_]+|\s+|[^\p{L}\p{M}\p{N}_\s]/gu;

// Return {parts: [{kind: "same" | "added" | "removed", text}], added, removed, exact}: how to come from the first text to
// the second one. Blanks follow the word before them. `exact` is false if the texts are too long to be aligned.
export function compareWords(first, second) {
  const before = splitWords(first);
  const after = splitWords(second);
  if (before.length > MAX_WORDS || after.length > MAX_WORDS) {
    const parts = [toPart("removed")(first), toPart("added")(second)];
    return { parts: parts, added: after.length, removed: before.length, exact: false };
  }
  let start = 0;
  while (start < before.length && start < after.length && isSame(before[start], after[start])) start += 1;
  let end = 0;
  const shorter = Math.min(before.length, after.length) - start;
  while (end < shorter && isSame(before[before.length - 1 - end], after[after.length - 1 - end])) end += 1;
  const middleBefore = before.slice(start, before.length - end);
  const middleAfter = after.slice(start, after.length - end);
  const exact = (middleBefore.length + 1) * (middleAfter.length + 1) <= MAX_TABLE;
  const middle = exact ? align(middleBefore, middleAfter) : [...middleBefore.map(toPart("removed")), ...middleAfter.map(toPart("added"))];
  const parts = [...after.slice(0, start).map(toPart("same")), ...middle, ...after.slice(after.length - end).map(toPart("same"))];
  return { parts: join(parts), added: count(parts, "added"), removed: count(parts, "removed"), exact: exact };
}

// Return the words of a text, each with the blanks after it.
function splitWords(text) {
  const words = [];
  for (const match of text.matchAll(WORD)) {
    if (match[0].trim() === "" && words.length) words[words.length - 1] += match[0];
    else words.push(match[0]);
  }
  return words;
}

function isSame(first, second) {
  return first === second || first.trim() === second.trim();
}

function toPart(kind) {
  return (text) => ({ kind: kind, text: text });
}

function align(before, after) {
  const width = after.length + 1;
  const lengths = new Uint16Array((before.length + 1) * width); // of the common subsequence of the rests
  const left = before.map((word) => word.trim());
  const right = after.map((word) => word.trim());
  for (let row = before.length - 1; row >= 0; row -= 1) {
    for (let column = after.length - 1; column >= 0; column -= 1) {
      const at = row * width + column;
      lengths[at] = left[row] === right[column] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  const parts = [];
  let row = 0;
  let column = 0;
  while (row < before.length && column < after.length) {
    const at = row * width + column;
    if (left[row] === right[column]) {
      parts.push({ kind: "same", text: after[column] });
      row += 1;
      column += 1;
    } else if (lengths[at + width] >= lengths[at + 1]) {
      parts.push({ kind: "removed", text: before[row] });
      row += 1;
    } else {
      parts.push({ kind: "added", text: after[column] });
      column += 1;
    }
  }
  return [...parts, ...before.slice(row).map(toPart("removed")), ...after.slice(column).map(toPart("added"))];
}

function count(parts, kind) {
  return parts.filter((part) => part.kind === kind).length;
}

function join(parts) {
  const joined = [];
  for (const part of parts) {
    const last = joined[joined.length - 1];
    if (last && last.kind === part.kind) last.text += part.text;
    else joined.push({ ...part });
  }
  return joined;
}
