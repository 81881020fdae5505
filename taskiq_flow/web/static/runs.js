// The list of runs, which stays up to date.

import { html, nothing, render } from "./vendor/lit-html.js";
import { SIGNS, Stream, ago, duration, get, show, shown } from "./api.js";
import { newRun } from "./forms.js";

const URGENT = ["failed", "interrupted"];
const MOST_LISTED = 1000;
const STATES = ["running", "failed", "interrupted", "completed", "cancelled"];

export class RunsPage {
  constructor(root, about) {
    Object.assign(this, { root, about, runs: new Map(), selected: null, connection: "", notice: "" });
    Object.assign(this, { isRead: false, more: null, failedFirst: true, ahead: 0 });
    this.readAddress();
    document.title = "runs · taskiq-flow";
    this.render();
    this.stream = new Stream(() => this.begin(), (event) => this.take(event), (text, error) => this.setConnection(text, error));
    this.ticking = setInterval(() => this.tick(), 1000);
  }

  close() {
    this.stream.close();
    clearInterval(this.ticking);
  }

  async begin() {
    const { tags } = this;
    const { runs, before, now } = await get(this.pathOf(tags));
    if (tags !== this.tags) return null; // others were chosen meanwhile
    this.ahead = now - Date.now() / 1000; // of the server's clock, by which runs have their times
    this.runs = new Map(runs.map((run) => [run.run, run]));
    Object.assign(this, { more: before, isRead: true, notice: "" });
    this.render();
    return "events";
  }

  take(event) {
    if (event.type === "run.deleted") this.runs.delete(event.run);
    else if (event.type === "run.summary" && this.hasTags(event)) this.runs.set(event.run, event);
    if (this.runs.size > MOST_LISTED) this.leaveOutOldest();
    this.isStale = true;
    queueMicrotask(() => this.isStale && this.render());
  }

  // The page may stay open for days. What it leaves out is among the older runs again.
  leaveOutOldest() {
    const [oldest, next] = [...this.runs.values()].sort((a, b) => a.started - b.started);
    this.runs.delete(oldest.run);
    this.more = next.started;
  }

  setConnection(text, error = null) {
    this.connection = text;
    if (error !== null) this.notice = error.message;
    this.render();
  }

  tick() {
    if (!document.hidden && [...this.runs.values()].some((run) => run.status === "running")) this.render();
  }

  async older() {
    const { tags } = this;
    const { runs, before } = await get(this.pathOf(tags, { before: this.more }));
    if (tags !== this.tags) return;
    for (const run of runs) this.runs.set(run.run, run);
    this.more = before;
    this.render();
  }

  readAddress() {
    const parameters = shown();
    this.tags = [...new Set(parameters.getAll("tag"))];
    this.search = parameters.get("search") ?? "";
    this.state = parameters.get("state") ?? "";
  }

  addressChanged() {
    const before = this.tags;
    this.readAddress();
    if (JSON.stringify(this.tags) === JSON.stringify(before)) this.tags = before; // with which the list is read
    else {
      for (const [name, run] of this.runs) if (!this.hasTags(run)) this.runs.delete(name);
      Object.assign(this, { more: null, isRead: false });
      this.stream.start();
    }
    this.render();
  }

  pathOf(tags, query = {}) {
    const parameters = new URLSearchParams(query);
    for (const tag of tags) parameters.append("tag", tag);
    return `runs?${parameters}`;
  }

  hasTags(run) {
    return this.tags.every((tag) => run.tags.includes(tag));
  }

  get listed() {
    const text = this.search.toLowerCase();
    const found = [...this.runs.values()].filter(
      (run) => `${run.run} ${run.name ?? ""} ${run.tags.join(" ")}`.toLowerCase().includes(text) && (!this.state || run.status === this.state),
    );
    const rank = (run) => (this.failedFirst && URGENT.includes(run.status) ? 0 : 1);
    return found.sort((a, b) => rank(a) - rank(b) || b.started - a.started);
  }

  key(key) {
    const names = this.listed.map((run) => run.run);
    const place = names.indexOf(this.selected);
    if (key === "j") this.choose(names[Math.min(place + 1, names.length - 1)]);
    else if (key === "k") this.choose(names[Math.max(place - 1, 0)]);
    else if (key === "Enter") {
      if (this.selected === null || document.activeElement?.closest("a, button, select")) return false;
      this.open(this.selected);
    } else if (key === "/") this.root.querySelector("#search").focus();
    else if (key === "f") this.failedFirst = !this.failedFirst;
    else if (key === "Escape") this.filter("search", "");
    else return false;
    this.render();
    return true;
  }

  choose(run) {
    this.selected = run ?? null;
    this.render();
    this.root.querySelector("tr.selected")?.scrollIntoView({ block: "nearest" });
    this.root.querySelector("tr.selected a")?.focus();
  }

  /** List the runs that have all of these tags. */
  setTags(tags) {
    show({ tag: tags });
    this.addressChanged();
  }

  /** Set the `search` or the `state` of the runs that are listed; an empty one is that of all. */
  filter(name, value) {
    show({ [name]: value || null }, { replace: true });
    this.addressChanged();
  }

  open(run) {
    show({ run });
    dispatchEvent(new PopStateEvent("popstate"));
  }

  render() {
    this.isStale = false;
    render(this.whole(), this.root);
  }

  whole() {
    const { listed } = this;
    return html`
      <header class="top">
        <h1>runs</h1>
        <p class="facts">${STATES.map((state) => {
          const count = [...this.runs.values()].filter((run) => run.status === state).length;
          return count ? html`<span class="count whole"><span class="sign ${state}">${SIGNS[state]}</span> ${count} ${state}</span> ` : nothing;
        })}</p>
        <div class="actions"><p class="quiet" role="status">${this.connection}</p>
          ${this.about.graphs.length ? html`<button @click=${() => newRun(this.about)}>New run…</button>` : nothing}</div>
        <button class="plain" @click=${() => document.querySelector("#help").showModal()} aria-label="Keys">?</button>
      </header>
      <main>
        ${this.notice ? html`<p class="notice" role="alert">${this.notice}</p>` : nothing}
        <div class="tools">
          <input id="search" type="search" placeholder="search runs" aria-label="Search runs" .value=${this.search}
            @input=${(event) => this.filter("search", event.target.value)}>
          ${this.tags.map((tag) => html`<button class="tag" aria-label=${`Remove tag ${tag}`} title="list runs without this tag too"
            @click=${() => this.setTags(this.tags.filter((one) => one !== tag))}><bdi>${tag}</bdi> ✕</button>`)}
          <select aria-label="State" @change=${(event) => this.filter("state", event.target.value)}>
            <option value="" .selected=${!this.state}>all states</option>
            ${STATES.map((state) => html`<option value=${state} .selected=${state === this.state}>${state}</option>`)}
          </select>
          <label><input type="checkbox" .checked=${this.failedFirst}
            @change=${(event) => { this.failedFirst = event.target.checked; this.render(); }}> failed first</label>
        </div>
        ${listed.length ? html`<table class="runs">
          <thead><tr><th>state</th><th>run</th><th>graph</th><th>started</th><th>took</th><th>nodes</th></tr></thead>
          <tbody>${listed.map((run) => this.row(run))}</tbody>
        </table>` : html`<p class="quiet">${this.isRead ? "No run is here." : "Reading…"}</p>`}
        ${this.more ? html`<p><button @click=${() => this.older()}>Older runs</button></p>` : nothing}
      </main>`;
  }

  row(run) {
    const seconds = run.started ? (run.ended ?? (run.status === "running" ? Date.now() / 1000 + this.ahead : null)) - run.started : null;
    const follow = (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      this.open(run.run);
    };
    const addTag = (event, tag) => {
      event.stopPropagation(); // and open no run
      this.setTags([...new Set([...this.tags, tag])]);
    };
    return html`<tr class=${run.run === this.selected ? "selected" : ""} @click=${follow}>
      <td class="state"><span class="sign ${run.status}">${SIGNS[run.status]}</span> ${run.status}</td>
      <th scope="row"><a href="?run=${encodeURIComponent(run.run)}"><bdi>${run.run}</bdi></a></th>
      <td><bdi>${run.name ?? ""}</bdi> ${run.tags.map((tag) => html`<button class="tag" title="runs with this tag"
        @click=${(event) => addTag(event, tag)}><bdi>${tag}</bdi></button> `)}</td>
      <td class="number">${ago(run.started)}</td>
      <td class="number">${seconds !== null && seconds >= 0 ? duration(seconds) : ""}</td>
      <td class="number">${run.completed + run.failed + run.skipped}/${run.total}
        ${run.failed ? html`<span class="sign failed">✗ ${run.failed}</span>` : nothing}</td>
    </tr>`;
  }
}
