// A reply that grows from the chunks of a stream. Every field is checked, because a chunk may contain anything.

const MAX_CALLS = 64;

export class Reply {
  constructor() {
    this.content = "";
    this.reasoning = "";
    this.calls = []; // {id, name, arguments}
    this.tokens = []; // {text, logprob, top: [{text, logprob}]}, if the request asked for them
    this.finish = null;
    this.usage = null;
    this.model = ""; // the model that answered, by the server's own words
  }

  // Add a chunk of v1/chat/completions.
  add(chunk) {
    if (!chunk || typeof chunk !== "object") return;
    if (chunk.usage && typeof chunk.usage === "object") this.usage = chunk.usage;
    if (typeof chunk.model === "string") this.model = chunk.model.slice(0, 512);
    const choice = Array.isArray(chunk.choices) ? chunk.choices[0] : null;
    if (!choice || typeof choice !== "object") return;
    const delta = choice.delta && typeof choice.delta === "object" ? choice.delta : {};
    if (typeof delta.content === "string") this.content += delta.content;
    if (typeof delta.reasoning_content === "string") this.reasoning += delta.reasoning_content;
    if (Array.isArray(delta.tool_calls)) delta.tool_calls.forEach((call) => this.addCall(call));
    if (choice.logprobs && Array.isArray(choice.logprobs.content)) {
      for (const token of choice.logprobs.content) if (token && typeof token === "object") this.tokens.push(readToken(token));
    }
    if (typeof choice.finish_reason === "string") this.finish = choice.finish_reason;
  }

  addCall(call) {
    if (!call || typeof call !== "object") return;
    const number = Number.isInteger(call.index) && call.index >= 0 ? call.index : this.calls.length;
    if (number >= MAX_CALLS) return;
    while (this.calls.length <= number) this.calls.push({ id: "", name: "", arguments: "" });
    const target = this.calls[number];
    const made = call.function && typeof call.function === "object" ? call.function : {};
    if (typeof call.id === "string" && call.id) target.id = call.id;
    if (typeof made.name === "string") target.name += made.name;
    if (typeof made.arguments === "string") target.arguments += made.arguments;
  }

  // The number of tokens as the server counted it at the end of the stream, or 0.
  get tokenCount() {
    const count = this.usage && this.usage.completion_tokens;
    return Number.isInteger(count) && count > 0 ? count : 0;
  }
}

function readToken(token) {
  const top = Array.isArray(token.top_logprobs) ? token.top_logprobs : [];
  return { ...readPair(token), top: top.slice(0, 20).filter((pair) => pair && typeof pair === "object").map(readPair) };
}

// A token may be a part of a character: its bytes are shown if its text is not complete.
function readPair(pair) {
  const text = typeof pair.token === "string" ? pair.token : "";
  const bytes = Array.isArray(pair.bytes) ? pair.bytes.filter((byte) => Number.isInteger(byte)).slice(0, 64) : [];
  const broken = text.includes("\ufffd") && bytes.length;
  const logprob = Number(pair.logprob);
  return {
    text: broken ? "<" + bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ") + ">" : text,
    bytes: bytes,
    logprob: Number.isFinite(logprob) ? logprob : -9999,
  };
}

export const FINISHES = {
  stop: "",
  tool_calls: "",
  length: "The reply was cut off at the largest number of tokens or at the server's time limit.",
  stopped: "You stopped this reply.",
  content_filter: "The server's filter blocked the rest of this reply.",
  interrupted: "The connection was lost; this is the part that arrived.",
  failed: "The reply failed; this is the part that arrived.",
};
