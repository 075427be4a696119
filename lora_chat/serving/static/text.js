// Text for people: strangers' text without tricks, numbers and names. Everything here returns plain strings.

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g;
const INVISIBLE = /[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\uffa0\u{e0000}-\u{e0fff}]/gu;

function escapeCharacter(character) {
  return "\\u" + character.codePointAt(0).toString(16).padStart(4, "0");
}

// Return a text of several lines in which characters that change the direction or move the cursor are visible escapes.
export function showText(text) {
  return String(text).replace(/\r\n?/g, "\n").replace(CONTROL, escapeCharacter);
}

// Return a name on one line, with every control and invisible character as an escape, cut to a number of characters.
export function showName(name, limit = 80) {
  const line = Array.from(String(name).slice(0, 4 * limit));
  const cut = line.length > limit ? line.slice(0, limit - 1).join("") + "…" : line.join("");
  return showText(cut).replace(/[\n\t]/g, escapeCharacter).replace(INVISIBLE, escapeCharacter);
}

// Return a token with its blanks and line feeds visible.
export function showToken(token) {
  return showText(token).replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(nothing)";
}

// Return a text in which half a surrogate pair, which a paste can leave and which is not a character, is U+FFFD.
export function repairText(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

export function shorten(text, limit) {
  const characters = Array.from(String(text).slice(0, 4 * limit));
  return characters.length > limit ? characters.slice(0, limit - 1).join("") + "…" : characters.join("");
}

export function formatCount(number) {
  return Number(number).toLocaleString("en");
}

// Return "1 token" or "2 tokens".
export function countWords(number, word) {
  return formatCount(number) + " " + word + (number === 1 ? "" : "s");
}

// Return a probability as a percentage that does not round to 0 or to 100 %.
export function formatProbability(logprob) {
  const percent = 100 * Math.exp(Math.min(0, logprob));
  if (percent > 99.9 && percent < 100) return "> 99.9 %";
  if (percent < 0.1) return "< 0.1 %";
  return percent.toFixed(percent < 10 ? 2 : 1) + " %";
}
