// The page of one run: its graph and its timeline, which share one selection, and a panel.

import { html, nothing, render } from "./vendor/lit-html.js";
import { BASE, SIGNS, Stream, ago, duration, get, nodePath, post, remove, runPath, show, shown } from "./api.js";
import { rerun } from "./forms.js";
import { Graph } from "./graph.js";
import { Model, wholeOf } from "./model.js";
import { panel, status } from "./panel.js";
import { Timeline } from "./timeline.js";

const DRAW_EVERY = 100;
const REPORT_EVERY = 1000; // or, where the server takes long, 20 times that
const MOST_EARLIER = 50;
const ABOUT_RESULTS = /; results of what had completed are in \.results: \d+/; // for programs

/** An estimate is not known to a part of a second. */
function leftText(seconds) {
  if (seconds < 1) return "< 1 s left";
  return `${seconds < 59.5 ? `${Math.round(seconds)} s` : duration(seconds)} left`;
}

export class RunPage {
  constructor(root, run, about) {
    Object.assign(this, { root, run, about, model: null, node: null, details: null, layout: null });
    Object.assign(this, { search: "", onlyFailed: false, tall: null, notice: "", connection: "" });
    Object.assign(this, { earlier: null, earlierRuns: null });
    document.title = `${run} · taskiq-flow`;
    this.render();
    this.graph = new Graph(root.querySelector("#graph"), (box) => this.selectBox(box));
    this.timeline = new Timeline(root.querySelector("#timeline"), (name) => this.select(name));
    this.readAddress();
    this.stream = new Stream(() => this.begin(), (event) => this.take(event), (text, error) => this.setConnection(text, error));
    this.ticking = setInterval(() => this.tick(), DRAW_EVERY);
    this.look();
  }

  close() {
    this.stream.close();
    this.graph.close();
    clearInterval(this.ticking);
    this.isClosed = true;
    clearTimeout(this.looking);
  }

  // What is known

  async begin() {
    await this.read();
    const isOver = !["running", "interrupted", "pending"].includes(this.model.status);
    if (isOver) this.setConnection("ended");
    return isOver ? null : runPath(this.run, "/events", { after: this.model.seq });
  }

  async read() {
    const asking = get(runPath(this.run));
    const early = this.known ? null : get(this.layoutPath).catch(() => null); // does not wait for it
    this.model = new Model(await asking);
    this.notice = "";
    this.timeline.draw(this.model);
    this.render();
    this.inspect();
    await this.layOut(await early);
    this.mark();
    this.render();
    if (this.earlierRuns === null) this.listEarlier();
  }

  get layoutPath() {
    const query = new URLSearchParams();
    if (this.fold !== null) query.set("fold", this.fold);
    for (const name of this.unfolded) query.append("unfolded", name);
    return runPath(this.run, "/graph", query);
  }

  async layOut(early = null) {
    const path = this.layoutPath;
    try {
      const known = `${path} ${this.model.nodes.size} ${this.model.sessions}`;
      if (known !== this.known) {
        this.layout = early ?? (await get(path));
        this.known = known;
        this.graph.draw(this.layout, this.model);
      } else this.graph.update(this.model);
    } catch (error) {
      this.layout = null;
      this.root.querySelector("#graph").textContent = `No drawing: ${error.message}`;
    }
  }

  take(event) {
    if (this.model.apply(event)) this.stream.start(); // a new snapshot, and what comes after it
  }

  setConnection(text, error = null) {
    this.connection = text;
    if (error !== null && this.model === null) this.notice = error.message;
    this.render();
  }

  look(after = REPORT_EVERY) {
    this.looking = setTimeout(async () => {
      const asked = performance.now();
      await this.readReport();
      if (!this.isClosed) this.look(Math.max(REPORT_EVERY, 20 * (performance.now() - asked)));
    }, after);
  }

  /** Some states are told by no event: that the engine is gone, and what holds the run back. */
  async readReport() {
    if (document.hidden || !this.model || !["running", "interrupted"].includes(this.model.status)) return;
    try {
      const report = await get(runPath(this.run, "/report"));
      if (report.status !== this.model.status) this.stream.start(); // and what became of the nodes
      else Object.assign(this.model, { sentence: report.sentence }).expect(report.left);
    } catch {
      return;
    }
    this.render();
  }

  // What is shown

  tick() {
    if (!this.model || document.hidden) return;
    const { changed } = this.model;
    if (!changed.size && this.model.status !== "running") return;
    this.model.changed = new Set();
    this.graph.update(this.model, changed);
    this.timeline.update(this.model, changed);
    if (changed.size && this.onlyFailed) this.mark();
    if (changed.has(this.node)) this.inspect();
    this.render();
  }

  matches(name) {
    const isFailed = !this.onlyFailed || this.model.nodes.get(name)?.state === "failed";
    return isFailed && name.toLowerCase().includes(this.search.toLowerCase());
  }

  mark() {
    const matches = (name) => this.matches(name);
    if (this.layout) this.graph.mark(this.whole, matches);
    this.timeline.mark(this.whole, matches);
  }

  /** The selected node; of an element, its mapped node. */
  get whole() {
    if (this.node === null || this.model.nodes.has(this.node)) return this.node;
    return wholeOf(this.node);
  }

  readAddress() {
    const parameters = shown();
    this.node = parameters.get("node");
    this.fold = parameters.get("fold");
    this.unfolded = parameters.getAll("open");
  }

  async addressChanged() {
    this.readAddress();
    if (!this.model) return;
    await this.layOut();
    this.mark();
    this.inspect();
    this.compare();
  }

  select(name) {
    if (name === null || name === this.node) return;
    this.node = name;
    show({ node: name }, { replace: true });
    this.mark();
    this.inspect();
  }

  /** A click on several nodes shows them one by one. */
  selectBox(box) {
    if (box.kind !== "group") {
      this.select(box.members[0]);
      return;
    }
    this.unfolded = [...this.unfolded, box.members[0]];
    show({ open: this.unfolded }, { replace: true });
    this.layOut().then(() => this.mark());
  }

  async inspect() {
    const name = this.node;
    if (name === null) this.details = null;
    else {
      try {
        const details = await get(nodePath(this.run, name));
        if (name !== this.node) return;
        this.details = details;
      } catch (error) {
        this.details = null;
        this.notice = error.message;
      }
    }
    this.render();
  }

  unselect() {
    this.node = this.details = null;
    show({ node: null }, { replace: true });
    this.mark();
    this.render();
  }

  async setFold(fold) {
    Object.assign(this, { fold, unfolded: [] });
    show({ fold, open: null }, { replace: true });
    await this.layOut();
    this.mark();
  }

  /** Ask the server for something, and tell its answer. */
  async ask(request, text = "") {
    try {
      await request();
      this.notice = text;
    } catch (error) {
      this.notice = error.message;
    }
    this.render();
  }

  stop() {
    return this.ask(() => post(runPath(this.run, "/cancel")), "The engine was asked to stop the run.");
  }

  resume() {
    return this.ask(async () => {
      await post(runPath(this.run, "/resume"));
      await this.stream.start(); // a new snapshot, and what comes after it
    });
  }

  delete() {
    if (!confirm(`Delete run ${this.run}?`)) return;
    this.ask(async () => {
      await remove(runPath(this.run));
      this.leave();
    });
  }

  rerun() {
    rerun(this.run, [...this.model.nodes.keys()], this.whole);
  }

  /**
   * What the user can do with the run. `from`: the text of the button that runs nodes again.
   * `isOfElement`: whether the buttons are those of an element, which does not run again alone.
   */
  buttons(from, isOfElement = false) {
    const { model, about } = this;
    if (!about.control || !model) return [];
    const isRunning = model.status === "running";
    const isStopped = ["failed", "cancelled", "interrupted"].includes(model.status) || (!isRunning && model.failures > 0);
    return [
      isRunning ? html`<button class="danger" ?disabled=${Boolean(model.requested)} @click=${() => this.stop()}>
        ${model.requested ? "Stopping…" : "Stop"}</button>` : nothing,
      isStopped && model.graph ? html`<button @click=${() => this.resume()}>Resume</button>` : nothing,
      !isRunning && model.graph ? html`<button @click=${() => this.rerun()}>${from}</button>
        ${isOfElement ? html`<span class="quiet">Elements do not run again alone.${isStopped ? " Resume runs failed ones." : ""}</span>` : nothing}` : nothing,
    ];
  }

  /** Find the runs of the same graph with which this one can be compared. */
  async listEarlier() {
    const { name, started } = this.model;
    this.earlierRuns = [];
    try {
      const query = new URLSearchParams({ name: name ?? "", before: started, limit: MOST_EARLIER });
      if (name) this.earlierRuns = (await get(`runs?${query}`)).runs;
    } catch (error) {
      this.notice = error.message;
    }
    this.render();
    await this.compare();
  }

  /** Show when the nodes of the run that the address names began and ended. */
  async compare() {
    const run = shown().get("with");
    if (run === (this.earlier?.run ?? null)) return;
    this.earlier = null;
    try {
      if (run !== null) this.earlier = await get(runPath(run));
    } catch (error) {
      this.notice = error.message;
    }
    this.timeline.compare(this.earlier);
    this.timeline.update(this.model);
    this.render();
  }

  /** What can be chosen: earlier runs, and the one that the address names. */
  get choices() {
    const listed = this.earlierRuns ?? [];
    const isListed = this.earlier === null || listed.some((run) => run.run === this.earlier.run);
    return isListed ? listed : [this.earlier, ...listed];
  }

  key(key) {
    if (key === "j" || key === "k") this.select(this.timeline.beside(this.node, key === "j" ? 1 : -1));
    else if (key === "ArrowDown" || key === "ArrowUp") {
      if (document.activeElement !== this.timeline.list) return false;
      this.select(this.timeline.beside(this.node, key === "ArrowDown" ? 1 : -1));
    } else if (key === "Enter") this.enter();
    else if (key === "/") this.root.querySelector("#search").focus();
    else if (key === "f") this.filter(!this.onlyFailed);
    else if (key === "t") this.tall = { null: "timeline", timeline: "graph", graph: null }[this.tall];
    else if (key === "Escape") this.escape();
    else return false;
    this.render();
    return true;
  }

  /** Show the node's box on its own if it is folded, and go to the panel. */
  enter() {
    const box = this.graph.boxOf.get(this.node)?.box;
    if (box?.kind === "group") this.selectBox(box);
    this.root.querySelector("aside").focus();
  }

  escape() {
    if (this.search) this.find("");
    else if (this.node !== null) this.unselect();
    else if (this.tall) this.tall = null;
    else this.leave();
  }

  /** Go to the list of runs. `changes`: of its address. */
  leave(changes = {}) {
    show({ run: null, node: null, fold: null, open: null, with: null, ...changes });
    dispatchEvent(new PopStateEvent("popstate"));
  }

  filter(onlyFailed) {
    this.onlyFailed = onlyFailed;
    this.mark();
    this.render();
  }

  find(text) {
    this.search = text;
    this.mark();
    this.render();
  }

  render() {
    render(this.page(), this.root);
  }

  page() {
    const { model } = this;
    return html`
      <header class="top">
        <h1><a href="./" @click=${(event) => { event.preventDefault(); this.leave(); }}>runs</a>
          <span class="quiet">▸</span> <bdi>${this.run}</bdi></h1>
        ${model ? html`<p class="facts">${status(model.status)} · ${duration(model.took)}
          ${model.sessions > 1 ? html` · session ${model.sessions}: ${duration(model.now)}` : nothing}
          · ${model.progress.join("/")}
          ${model.secondsLeft === null ? nothing : html` · ${leftText(model.secondsLeft)}`}
          ${model.failures ? html` · <span class="sign failed">✗ ${model.failures} failed</span>` : nothing}
          ${model.name ? html` · <bdi>${model.name}</bdi>` : nothing}
          ${(model.on_error ?? "raise") === "raise" ? nothing : html` · on_error="${model.on_error}"`}
          ${model.origin && model.origin !== model.name ? html` <bdi class="quiet">${model.origin}</bdi>` : nothing}
          ${model.tags.map((tag) => html`<button class="tag" title="runs with this tag"
            @click=${() => this.leave({ tag })}><bdi>${tag}</bdi></button> `)}</p>` : nothing}
        <div class="actions"><p class="quiet" role="status">${this.connection}</p>
          ${this.buttons("Rerun…")}
          ${this.about.control && model && model.status !== "running" ? html`<button @click=${() => this.delete()}>Delete</button>` : nothing}</div>
        <button class="plain" @click=${() => document.querySelector("#help").showModal()} aria-label="Keys">?</button>
      </header>
      <main class="run ${this.tall ?? ""} ${this.node === null ? "" : "with-panel"}">
        <div class="notices">
          ${this.notice ? html`<p class="notice" role="alert">${this.notice}</p>` : nothing}
          ${model?.error ? html`<p class="error"><strong>✗ ${model.error.type}</strong>${model.error.message ? `: ${model.error.message.replace(ABOUT_RESULTS, "")}` : ""}</p>` : nothing}
          ${model ? html`<p class="sentence">${model.sentence.replaceAll(" -> ", " → ")}</p>` : nothing}
          ${model?.missed ? html`<p class="quiet">${model.missed} events are missing.</p>` : nothing}
        </div>
        <div class="tools">
          <label><input type="checkbox" .checked=${this.fold === null ? this.layout?.is_folded ?? false : this.fold === "1"}
            @change=${(event) => this.setFold(event.target.checked ? "1" : "0")}> fold equal nodes</label>
          <label><input type="checkbox" .checked=${this.onlyFailed}
            @change=${(event) => this.filter(event.target.checked)}> failed</label>
          ${this.choices.length ? html`<select aria-label="Compare with" @change=${(event) => {
            show({ with: event.target.value || null }, { replace: true });
            this.compare();
          }}>
            <option value="" .selected=${this.earlier === null}>compare with…</option>
            ${this.choices.map((run) => html`<option value=${run.run} .selected=${run.run === this.earlier?.run}>
              ${SIGNS[run.status]} ${run.run} · ${run.ended && run.started ? `${duration(run.ended - run.started)} · ` : ""}${ago(run.started)}</option>`)}
          </select>` : nothing}
          <input id="search" type="search" placeholder="search nodes" aria-label="Search nodes" .value=${this.search}
            @input=${(event) => this.find(event.target.value)}>
          <a href="${BASE}/${runPath(this.run, "/trace")}" download>trace</a>
        </div>
        <section id="graph" tabindex="0" aria-label="Graph"></section>
        <section class="times" aria-label="Timeline">
          <p class="legend"><span class="key waiting"></span>waiting <span class="key queued"></span>queued
            <span class="key running"></span>running <span class="key failed"></span>✗ failed
            ${this.earlier ? html`<span class="key last"></span><bdi>${this.earlier.run}</bdi>: begin and end, ${duration(this.earlier.seconds)} in all` : nothing}</p>
          <div id="timeline"></div>
        </section>
        <aside tabindex="-1" aria-label="Node" ?hidden=${this.node === null}>
          ${this.details ? panel(this.run, this.details, {
            select: (name) => this.select(name), close: () => this.unselect(), buttons: this.buttons(html`Rerun from <bdi>${this.whole}</bdi>…`, this.node !== this.whole),
          }) : nothing}
        </aside>
      </main>`;
  }
}
