// One JSON request with the XSRF header, and one shape for every outcome.

const MAX_DELAY_MS = 8000;

function xsrfToken() {
  return document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";
}

// How long to wait before the next attempt, `brokenMs` after things broke: a share of that,
// so that nobody is away for much longer than the server was, and part of it by chance, so
// that not all clients come at the same moment.
export function retryDelayMs(brokenMs) {
  return Math.min(Math.max(brokenMs / 4, 250), MAX_DELAY_MS) * (0.5 + Math.random() / 2);
}

// Event: "renewed" (detail: {id, name}): our cookies were gone, and with them who we were.
export const identity = new EventTarget();

let renewal = null;

// Once for all requests that are refused together: each would be given cookies of its own.
function renew() {
  renewal ??= request("/api/me").then((result) => {
    renewal = null;
    if (result.ok) identity.dispatchEvent(new CustomEvent("renewed", { detail: result.body }));
  });
  return renewal;
}

// Returns {ok, body} or {ok: false, message, code, mayRetry, retryAfterMs}; never throws.
// With `body` it is a POST.
export async function request(address, { body, timeoutMs = 15000, signal, again = true } = {}) {
  const signals = [AbortSignal.timeout(timeoutMs)];
  if (signal) signals.push(signal);
  const options = { signal: AbortSignal.any(signals), cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json", "X-Xsrftoken": xsrfToken() };
    options.body = JSON.stringify(body);
  }
  let response;
  let answer = null;
  try {
    response = await fetch(address, options);
    if (response.status !== 204) answer = await response.json();
  } catch {
    // No answer, or one that is not ours: a proxy's page while the server restarts.
    if (!response || response.ok || response.status >= 500) {
      return { ok: false, message: "the server cannot be reached", mayRetry: true, retryAfterMs: 0 };
    }
  }
  if (response.ok) return { ok: true, body: answer };

  const { code = "", message = "the request failed" } = answer?.error ?? {};
  if (code === "xsrf" && again) {
    // Our cookies are gone or out of date: get new ones.
    await renew();
    return request(address, { body, timeoutMs, signal, again: false });
  }
  return {
    ok: false,
    code,
    message,
    mayRetry: response.status === 429 || response.status >= 500,
    retryAfterMs: 1000 * Number(response.headers.get("Retry-After") ?? 0),
  };
}
