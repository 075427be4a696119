// Errors of the server in words that say what to do next.

export class ApiError extends Error {
  // kind: "network", "interrupted", "key", "busy", "refused" or "server"; retryAfter: seconds, or null
  constructor(kind, message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

const TEXTS = {
  401: "The server needs a key. Reload the page and enter it as the password.",
  403: "The server refuses requests from this address of the page.",
  404: "The server does not have this model. It may have been removed; choose another one.",
  413: "The request is too large for the server.",
  429: "The server is busy.",
  503: "The server is busy or stops.",
};

function readSeconds(header) {
  const seconds = Number(header);
  return header !== null && header.trim() !== "" && Number.isFinite(seconds) && seconds >= 0 ? Math.min(3600, Math.ceil(seconds)) : null;
}

// Return the error of a response that is not 2xx. The body is text from the server and may be anything.
export async function readError(response) {
  const status = response.status;
  let error = {};
  try {
    const body = JSON.parse((await response.text()).slice(0, 100_000));
    if (body && typeof body.error === "object" && body.error) error = body.error;
  } catch { /* not JSON: the status has a text below */ }
  const detail = typeof error.message === "string" ? error.message.slice(0, 2000) : "";
  const kind = status === 401 ? "key" : status === 429 || status === 503 ? "busy" : status >= 500 ? "server" : "refused";
  const field = typeof error.param === "string" && error.param && !detail.includes(error.param) ? "(" + error.param.slice(0, 200) + ")" : "";
  const text = [TEXTS[status] || "", status === 401 ? "" : detail, field].filter(Boolean).join(" ");
  return new ApiError(kind, text || "The server answered with status " + status + ".", {
    status: status,
    code: typeof error.code === "string" ? error.code : null,
    param: typeof error.param === "string" ? error.param : null,
    retryAfter: kind === "busy" ? readSeconds(response.headers.get("retry-after")) ?? 5 : null,
  });
}

// Return the error of an exception, or null if it is the person's own stop.
export function toApiError(error) {
  if (error instanceof ApiError) return error;
  if (error && error.name === "AbortError") return null;
  return new ApiError("server", "The page could not read the answer: " + String(error && error.message).slice(0, 500));
}

// Return the error in an event of a stream, which has the form of OpenAI's errors.
export function streamError(error) {
  const message = error && typeof error.message === "string" ? error.message.slice(0, 2000) : "The reply failed.";
  return new ApiError("server", message, { code: error && typeof error.code === "string" ? error.code : null });
}
