// Requests, streams, and what texts all pages have in common.

export const SIGNS = {
  completed: "✓", failed: "✗", running: "●", queued: "○", cancelled: "⊘", skipped: "–",
  pending: "·", interrupted: "!",
};

export const BASE = "api/v1";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, options = {}) {
  const response = await fetch(`${BASE}/${path}`, options);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body?.error?.message ?? response.statusText);
  return body;
}

export function post(path, content = {}) {
  const headers = { "content-type": "application/json" };
  return get(path, { method: "POST", headers, body: JSON.stringify(content) });
}

export const remove = (path) => get(path, { method: "DELETE" });

/** The path of something of a run. `query`: further parameters, as `URLSearchParams` takes them. */
export function runPath(run, rest = "", query = {}) {
  return path(["runs/", { run }, rest], query);
}

export function nodePath(run, node, rest = "") {
  return path(["runs/", { run }, "/nodes/", { node }, rest]);
}

/** Names that browsers, or servers in between, change in a path or do not find there are in the query. */
function path(parts, query = {}) {
  const parameters = new URLSearchParams(query);
  const segments = parts.map((part) => {
    if (typeof part === "string") return part;
    const [[key, name]] = Object.entries(part);
    if (!/^\.{0,2}$|[/\\\x00-\x1f]/.test(name)) return encodeURIComponent(name);
    parameters.set(key, name);
    return "-";
  });
  return segments.join("") + (parameters.size ? `?${parameters}` : "");
}

/** One stream of events. It is closed while the page is hidden, as browsers allow few of them. */
export class Stream {
  /** `begin` gives the path, after what is known was read; `take` gets each event, `onState` what to show of the connection. */
  constructor(begin, take, onState) {
    Object.assign(this, { begin, take, onState, source: null, number: 0, timer: null });
    this.onVisible = () => (document.hidden ? this.pause() : this.start());
    document.addEventListener("visibilitychange", this.onVisible);
    if (!document.hidden) this.start();
  }

  async start() {
    this.pause();
    const number = this.number;
    try {
      const path = await this.begin();
      if (path === null || number !== this.number) return;
      this.source = new EventSource(`${BASE}/${path}`);
      this.source.onopen = () => this.onState("live");
      this.source.onmessage = (message) => this.take(JSON.parse(message.data));
      this.source.onerror = () => {
        this.onState("waiting for the server");
        if (this.source?.readyState === EventSource.CLOSED) this.later();
      };
    } catch (error) {
      if (number !== this.number) return;
      this.onState(error instanceof Refused ? "" : "waiting for the server", error);
      if (!(error instanceof Refused) || error.status >= 429) this.later();
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), 2000);
  }

  pause() {
    this.number += 1;
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  close() {
    this.pause();
    document.removeEventListener("visibilitychange", this.onVisible);
  }
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds > 0 && seconds < 0.001) return "<1 ms";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours} h ${two(minutes)} m` : `${minutes} m ${two(whole % 60)} s`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  if (bytes < 1000) return `${bytes} B`;
  const power = Math.min(3, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1000 ** power).toFixed(1)} ${["B", "kB", "MB", "GB"][power]}`;
}

export function ago(seconds) {
  if (!seconds) return "";
  const date = new Date(seconds * 1000);
  const days = (Date.now() - date) / 86400e3;
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return days < 0.75 ? time : `${date.toLocaleDateString()} ${time}`;
}

/** The parameters of the address, which hold what is shown. */
export function shown() {
  return new URLSearchParams(location.search);
}

export function show(changes, { replace = false } = {}) {
  const parameters = shown();
  for (const [name, value] of Object.entries(changes)) {
    parameters.delete(name);
    for (const one of value === null ? [] : [value].flat()) parameters.append(name, one);
  }
  const address = parameters.size ? `?${parameters}` : location.pathname;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}
