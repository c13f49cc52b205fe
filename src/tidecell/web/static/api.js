// The API as the console uses it: token, requests, and the series that is kept up to date piece by piece.

const TIMEOUT_MS = 5000;
const TOKEN_KEY = "tidecell-token";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Take the token from the address (and out of it, so that it is not copied along or kept in the history).
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN_KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN_KEY, token);
  else sessionStorage.removeItem(TOKEN_KEY);
}

// Answers with their tags: what is the same as before is not sent, nor read, again.
const known = new Map();
const MAX_KNOWN = 60;

export async function get(token, path, timeoutMs = TIMEOUT_MS) {
  const before = known.get(path);
  const answer = await ask(token, path, { tag: before?.token === token ? before.tag : "", timeoutMs });
  if (answer.status === 304) return before.value;
  const value = answer.headers.get("content-type")?.startsWith("text/plain") ? await answer.text() : await answer.json();
  const tag = answer.headers.get("etag");
  known.delete(path);
  if (tag) known.set(path, { token, tag, value });
  if (known.size > MAX_KNOWN) known.delete(known.keys().next().value);
  return value;
}

// Send text, for example a spec in YAML, or JSON.
export async function send(token, method, path, body, type) {
  return (await ask(token, path, { method, body, type })).json();
}

async function ask(token, path, { method = "GET", body, type, tag, timeoutMs = TIMEOUT_MS }) {
  const answer = await fetch(path, {
    method,
    body,
    headers: { Authorization: `Bearer ${token}`, ...(type && body && { "Content-Type": type }), ...(tag && { "If-None-Match": tag }) },
    cache: "no-store",
    signal: AbortSignal.timeout(timeoutMs),
  });
  if (answer.ok || answer.status === 304) return answer;
  const { error } = await answer.json().catch(() => ({}));
  const hint = error?.hint ? `\n${error.hint}` : "";
  throw new ApiError(error ? error.message + hint : `the server answered ${answer.status}`, answer.status);
}

export const items = async (token, path) => (await get(token, path)).items ?? [];

// Samples of the last windowS seconds. The first call fetches them all, later ones what is new since.
export class Series {
  constructor(windowS, maxPoints = 600) {
    this.windowS = windowS;
    this.maxPoints = maxPoints;
    this.samples = [];
    this.fetchedMs = 0;
  }

  async update(token) {
    const askedMs = performance.now();
    const elapsedS = (askedMs - this.fetchedMs) / 1000;
    const sinceS = this.samples.length ? Math.min(this.windowS, Math.ceil(elapsedS) + 3) : this.windowS;
    this.add(await items(token, `/v1/series?since=${sinceS}&points=${this.maxPoints + 20}`));
    this.fetchedMs = askedMs;
  }

  // Keep the newest sample of each step of time, on a fixed grid so that the chart does not shimmer.
  add(fresh) {
    const stepS = Math.max(1, Math.ceil(this.windowS / this.maxPoints));
    const newestS = fresh.at(-1)?.at_s ?? this.samples.at(-1)?.at_s ?? 0;
    const bySlot = new Map();
    for (const s of [...this.samples, ...fresh]) {
      if (s.at_s < newestS - this.windowS) continue;
      const slot = stepS > 1 ? Math.floor(s.at_s / stepS) : s.at_s;
      if (!bySlot.has(slot) || bySlot.get(slot).at_s <= s.at_s) bySlot.set(slot, s);
    }
    this.samples = [...bySlot.values()].sort((a, b) => a.at_s - b.at_s);
  }
}
