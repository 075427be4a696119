// Emphasis of Markdown: matches runs of *, _ and ~ as CommonMark's delimiter stack does, in linear time.

const MAX_DEPTH = 12;
const TAGS = { "~": { 2: "del" }, "*": { 1: "em", 2: "strong" }, _: { 1: "em", 2: "strong" } };
const PUNCTUATION = /[\p{P}\p{S}]/u;

// Return the run of delimiters with whether it can open and close, from the characters on its sides ("" at an end).
export function describeRun(character, length, before, after) {
  const blankBefore = before === "" || /\s/.test(before);
  const blankAfter = after === "" || /\s/.test(after);
  const markBefore = PUNCTUATION.test(before);
  const markAfter = PUNCTUATION.test(after);
  const left = !blankAfter && (!markAfter || blankBefore || markBefore);
  const right = !blankBefore && (!markBefore || blankAfter || markAfter);
  const word = character === "_";
  return {
    kind: "run",
    character: character,
    length: length,
    left: length,
    canOpen: left && (!word || !right || markBefore),
    canClose: right && (!word || !left || markAfter),
    opens: [],
    closes: [],
  };
}

// Fill `opens` and `closes` of the runs in a list of tokens, and leave in `left` how many characters stay text.
export function matchRuns(tokens) {
  const runs = tokens.filter((token) => token.kind === "run");
  const previous = runs.map((_, at) => at - 1); // a linked list: matched and skipped runs are taken out
  const bottoms = new Map(); // where the search for an opener may stop, per kind of closer
  for (let at = 0; at < runs.length; at += 1) {
    const closer = runs[at];
    while (closer.canClose && closer.left > 0) {
      const key = closer.character + closer.canOpen + (closer.length % 3) + (closer.character === "~" ? closer.left : "");
      const bottom = bottoms.has(key) ? bottoms.get(key) : -1;
      let from = previous[at];
      while (from > bottom && !fits(runs[from], closer)) from = previous[from];
      if (from <= bottom) {
        bottoms.set(key, previous[at]);
        break;
      }
      const opener = runs[from];
      const size = opener.left >= 2 && closer.left >= 2 ? 2 : 1;
      const tag = TAGS[closer.character][size];
      opener.left -= size;
      closer.left -= size;
      opener.opens.unshift(tag);
      closer.closes.push(tag);
      previous[at] = opener.left > 0 ? from : previous[from];
    }
  }
}

function fits(opener, closer) {
  if (opener.character !== closer.character || !opener.canOpen || opener.left === 0) return false;
  if (closer.character === "~") return opener.left === 2 && closer.left === 2;
  // The rule of three of CommonMark keeps *foo**bar* one emphasis.
  const both = opener.canClose || closer.canOpen;
  return !both || (opener.length + closer.length) % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

// Append tokens to a node. `make(token)` returns the node of any token that is not a run. Deeper levels stay flat.
export function appendTokens(parent, tokens, make) {
  const stack = [parent];
  let skipped = 0;
  for (const token of tokens) {
    if (token.kind !== "run") {
      stack[stack.length - 1].append(make(token));
      continue;
    }
    for (let count = token.closes.length; count > 0; count -= 1) {
      if (skipped > 0) skipped -= 1;
      else stack.pop();
    }
    if (token.left > 0) stack[stack.length - 1].append(token.character.repeat(token.left));
    for (const tag of token.opens) {
      if (stack.length > MAX_DEPTH) {
        skipped += 1;
        continue;
      }
      const node = document.createElement(tag);
      stack[stack.length - 1].append(node);
      stack.push(node);
    }
  }
}
