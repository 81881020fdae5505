// The state of a run: a snapshot, and the events after it. After a new session, a gap or the end
// of the run, a new snapshot is needed.

export class Model {
  constructor(snapshot) {
    Object.assign(this, snapshot);
    this.nodes = new Map(snapshot.nodes.map((node) => [node.node, node]));
    this.edges = new Map(Object.entries(snapshot.edges)); // any name may be that of a node: constructor
    for (const node of this.nodes.values()) {
      if (node.elements) node.elements.in_flight = new Map(Object.entries(node.elements.in_flight));
    }
    this.read = this.expected = performance.now();
    this.changed = new Set();
  }

  /** Seconds since the run began. */
  get now() {
    const since = this.status === "running" ? (performance.now() - this.read) / 1000 : 0;
    return this.seconds + since;
  }

  /** Seconds since the first session of the run began, pauses included, as in the list of runs. */
  get took() {
    return this.sessions > 1 && this.started ? this.time - this.started + this.now : this.now;
  }

  /** Take in how many seconds the run is going to take, as the server estimates it. */
  expect(left) {
    Object.assign(this, { left, expected: performance.now() });
  }

  /** How many seconds are left, `null` if nobody can say. */
  get secondsLeft() {
    if (this.left === null || this.status !== "running") return null;
    return Math.max(0, this.left - (performance.now() - this.expected) / 1000);
  }

  /** How many nodes and elements are done, and how many are known. */
  get progress() {
    let [done, known] = [0, 0];
    for (const { state, elements, ended_itself } of this.nodes.values()) {
      done += elements ? doneOf(elements) + Number(ended_itself) : Number(isDone(state));
      known += elements ? elements.known + Number(ended_itself) : 1;
    }
    return [done, known];
  }

  /** How many nodes and elements have failed. */
  get failures() {
    return [...this.nodes.values()].reduce((sum, { state, elements, ended_itself }) =>
      sum + (elements?.failed ?? 0) + Number(state === "failed" && (!elements || ended_itself)), 0);
  }

  /** Take in an event. Returns whether a new snapshot is needed. */
  apply(event) {
    if (event.type === "reset") return true;
    if (event.type === "run.requested") {
      this.requested = event.request;
      return false;
    }
    if (event.seq <= this.seq) return false;
    this.seq = event.seq;
    if (["run.started", "run.ended", "gap"].includes(event.type) || this.status === "interrupted") return true;
    const at = event.at - this.clock;
    if (event.type === "elements") {
      const node = this.nodes.get(event.node);
      if (node?.elements) this.countKnown(node, event.known, at);
      return false;
    }
    const node = this.nodes.get(event.index === undefined ? event.node : wholeOf(event.node));
    if (node === undefined) return event.type.startsWith("node.");
    this.changed.add(node.node);
    if (event.index === undefined) this.applyTo(node, event, at);
    else if (node.elements) this.applyToElement(node, event, at);
    return false;
  }

  applyTo(node, event, at) {
    const type = event.type;
    if (type === "node.sent") {
      node.ready ??= this.readyAt(node);
      Object.assign(node, { state: "queued", attempts: event.attempt, sent: at, began: null });
    } else if (type === "node.began") {
      Object.assign(node, { state: "running", began: at });
    } else if (type === "node.retried" || type === "node.fell_back") {
      if (node.sent !== null) {
        (node.earlier ??= []).push([node.sent, node.began, at - (event.delay ?? 0)]);
      }
      Object.assign(node, { state: "queued", attempts: event.attempt, sent: at, began: null });
    } else if (STATE_OF_END[type]) {
      node.ready ??= this.readyAt(node);
      Object.assign(node, { state: STATE_OF_END[type], ended: at, ended_itself: true });
    }
  }

  applyToElement(node, event, at) {
    const { elements } = node;
    const before = elements.in_flight.get(event.node);
    if (before) elements[before] -= 1;
    const state = STATE_OF_END[event.type] ?? (event.type === "node.began" ? "running" : "queued");
    elements[state] += 1;
    if (STATE_OF_END[event.type]) {
      elements.in_flight.delete(event.node);
      node.ended = at;
    } else {
      elements.in_flight.set(event.node, state);
      node.sent ??= at;
      if (state === "running") node.began ??= at;
    }
    elements.known = Math.max(elements.known, endedOf(elements) + elements.in_flight.size);
    this.update(node, at);
  }

  countKnown(node, count, at) {
    const { elements } = node;
    elements.known = Math.max(count, elements.known);
    elements.are_all_known = elements.levels === 1; // of lists within lists, a snapshot tells
    this.changed.add(node.node);
    this.update(node, at);
  }

  update(node, at) {
    const { elements } = node;
    if (isEnded(node.state)) return;
    if (elements.are_all_known && endedOf(elements) >= elements.known) {
      Object.assign(node, { state: elements.failed ? "failed" : "completed", ended: at });
    } else if (node.state === "pending" && elements.known) {
      const before = (this.edges.get(node.node) ?? []).map((name) => this.nodes.get(name));
      const isReady = before.every((other) => !other || isEnded(other.state));
      Object.assign(node, { state: "running", ready: isReady ? this.readyAt(node) : at });
    }
  }

  readyAt(node) {
    const ends = (this.edges.get(node.node) ?? []).map((name) => this.nodes.get(name)?.ended ?? 0);
    return Math.max(0, ...ends);
  }
}

const STATE_OF_END = {
  "node.completed": "completed", "node.failed": "failed", "node.skipped": "skipped",
};

export const isEnded = (state) => !["pending", "queued", "running", "interrupted"].includes(state);

/** Whether a node counts as done, as in the list of runs: what was cancelled runs when it is resumed. */
export const isDone = (state) => ["completed", "failed", "skipped"].includes(state);

export const doneOf = (elements) => elements.completed + elements.failed + elements.skipped;

export const endedOf = (elements) => doneOf(elements) + elements.cancelled;

/** The mapped node of an element. */
export const wholeOf = (name) => name.slice(0, name.lastIndexOf("[")) || name;

/** What a node did, when: its parts with their start and end in seconds since the run began. */
export function spansOf(node, now) {
  const end = isEnded(node.state) ? node.ended : now;
  const attempts = [...(node.earlier ?? [])];
  if (node.sent !== null) attempts.push([node.sent, node.began, end]);
  else if (node.ready !== null && end !== null && node.state !== "pending") {
    return end > node.ready ? [["waiting", node.ready, end]] : [];
  }
  const spans = [];
  let at = node.ready;
  for (const [sent, begun, ended] of attempts) {
    const began = begun ?? (["queued", "interrupted"].includes(node.state) && ended === end ? ended : sent);
    for (const [part, from, to] of [["waiting", at, sent], ["queued", sent, began], ["running", began, ended]]) {
      if (from !== null && to !== null && to > from) spans.push([part, from, to]);
    }
    at = ended;
  }
  return spans;
}
