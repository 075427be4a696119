// Server-sent events: a parser that is fed pieces of text with borders anywhere, and a reader of a response body.

import { ApiError } from "./api_error.js";

const MAX_EVENT = 8_000_000;
export const INTERRUPTED = "The connection was lost before the reply was complete.";

export class EventParser {
  constructor() {
    this.pieces = []; // parts of the line that is not complete yet; joined once, so a long line costs linear time
    this.size = 0;
    this.data = [];
    this.afterReturn = false;
    this.atStart = true;
  }

  // Return the data of the events that a piece of text completes.
  feed(text) {
    const events = [];
    let start = 0;
    if (this.atStart && text) {
      this.atStart = false;
      if (text[0] === "\ufeff") start = 1;
    }
    if (this.afterReturn && text) {
      this.afterReturn = false;
      if (text[start] === "\n") start += 1;
    }
    for (let at = start; at < text.length; at += 1) {
      const character = text.charCodeAt(at);
      if (character !== 10 && character !== 13) continue;
      this.pieces.push(text.slice(start, at));
      this.endLine(events);
      if (character === 13) {
        if (at + 1 === text.length) this.afterReturn = true;
        else if (text.charCodeAt(at + 1) === 10) at += 1;
      }
      start = at + 1;
    }
    if (start < text.length) {
      this.pieces.push(text.slice(start));
      this.size += text.length - start;
      if (this.size > MAX_EVENT) throw new ApiError("server", "The server sent an event that is too long.");
    }
    return events;
  }

  endLine(events) {
    const line = this.pieces.length === 1 ? this.pieces[0] : this.pieces.join("");
    this.pieces = [];
    if (line === "") {
      if (this.data.length) events.push(this.data.join("\n"));
      this.data = [];
      this.size = 0;
    } else if (line.startsWith("data:")) {
      this.data.push(line.slice(line[5] === " " ? 6 : 5));
    } else if (line === "data") {
      this.data.push("");
    }
  }
}

// Yield the data of each event in a response body. Bytes of a character may be in different pieces.
export async function* readEvents(body) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("interrupted", INTERRUPTED);
      });
      yield* parser.feed(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
