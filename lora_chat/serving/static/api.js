// Requests to this server. Paths are relative to the page, so that a proxy may put it under a prefix.
// The browser adds the key of its own password dialog; the page neither sees nor keeps it.

import { ApiError, readError, streamError, toApiError } from "./api_error.js";
import { INTERRUPTED, readEvents } from "./event_stream.js";

const MAX_MODELS = 500;

function resolve(path) {
  return new URL(path, document.baseURI).href;
}

// Send a request and return the response; throws ApiError. `body` is sent as JSON. `path` is a literal such as "v1/models".
export async function request(path, { method = "GET", body = null, signal = null, headers = {} } = {}) {
  const options = { method: method, signal: signal, cache: "no-store", credentials: "same-origin", redirect: "error", headers: { ...headers } };
  if (body !== null) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(resolve(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connection.report(false);
    throw new ApiError("network", "The server does not answer. Is it running?");
  }
  connection.report(true);
  if (!response.ok) throw await readError(response);
  return response;
}

// Send a request and return the decoded JSON; throws ApiError, or AbortError after a stop.
export async function requestJson(path, options) {
  try {
    return await (await request(path, options)).json();
  } catch (error) {
    throw toApiError(error) || error;
  }
}

// Return the models of the server as [{id, base, checks: [{name, passed, detail}], context, system}] and the refused ones.
export async function listModels() {
  const answer = await requestJson("v1/models");
  const rows = Array.isArray(answer && answer.data) ? answer.data : [];
  const refused = Object.entries((answer && answer.refused) || {});
  return {
    models: rows.slice(0, MAX_MODELS).filter((row) => row && typeof row.id === "string" && row.id).map(readModel),
    refused: refused.slice(0, MAX_MODELS).map(([name, reason]) => ({ name: String(name), reason: String(reason) })),
  };
}

function readModel(row) {
  const checks = Array.isArray(row.checks) ? row.checks : [];
  return {
    id: row.id,
    isBase: row.id === "base",
    checks: checks.slice(0, 50).filter((check) => check && typeof check === "object").map((check) => ({
      name: String(check.name),
      passed: typeof check.passed === "boolean" ? check.passed : null,
      detail: String(check.detail ?? ""),
    })),
    context: Number.isInteger(row.context_length) && row.context_length > 0 ? row.context_length : null,
    system: typeof row.system === "string" ? row.system : "",
  };
}

// Return the token ids and texts of the next prompt of a conversation: {count, context, tokens: [{id, text}]}.
export async function tokenizeMessages(model, messages, signal) {
  const answer = await requestJson("v1/tokenize", { method: "POST", body: { model: model, messages: messages }, signal: signal });
  const rows = Array.isArray(answer && answer.tokens) ? answer.tokens : [];
  const tokens = rows.filter((row) => row && typeof row === "object").map((row) => ({ id: row.id, text: String(row.text ?? "") }));
  return {
    count: Number.isInteger(answer.count) ? answer.count : tokens.length,
    context: Number.isInteger(answer.max_model_len) ? answer.max_model_len : null,
    tokens: tokens,
  };
}

// Ask for a reply and call `receive(chunk)` for each chunk of the stream. Throws ApiError, or AbortError after a stop.
export async function streamChat(body, signal, receive) {
  try {
    const response = await request("v1/chat/completions", { method: "POST", body: { ...body, stream: true }, signal: signal });
    let ended = false;
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (!chunk || typeof chunk !== "object") continue;
      if (chunk.error) throw streamError(chunk.error);
      receive(chunk);
      ended = ended || Boolean(chunk.choices && chunk.choices[0] && chunk.choices[0].finish_reason);
    }
    if (!ended) throw new ApiError("interrupted", INTERRUPTED);
  } catch (error) {
    throw toApiError(error) || error;
  }
}

// Whether the server answers. After a lost connection it is asked every three seconds until it answers again.
export const connection = {
  listeners: [],
  connected: true,
  report(connected) {
    if (connected === this.connected) return;
    this.connected = connected;
    for (const listener of this.listeners) listener(connected);
    if (!connected) this.ask();
  },
  ask() {
    setTimeout(async () => {
      try {
        await fetch(resolve("health"), { cache: "no-store" });
        this.report(true);
      } catch {
        this.ask();
      }
    }, 3000);
  },
};
