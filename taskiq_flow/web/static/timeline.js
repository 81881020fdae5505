// A row for each node, with what it did when. It is also the list by which nodes are chosen.

import { SIGNS, duration } from "./api.js";
import { make } from "./graph.js";
import { doneOf, isEnded, spansOf } from "./model.js";

const WIDE = 1000;
const MOST_ROWS = 1000;
const MOST_TICKS = 6;

export class Timeline {
  constructor(holder, select) {
    Object.assign(this, { holder, select, rows: new Map(), seconds: 0, earlier: null, least: 0 });
    this.axis = document.createElement("div");
    this.axis.className = "axis";
    this.axis.setAttribute("aria-hidden", "true");
    this.list = document.createElement("ul");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "nodes, by the time at which they began");
    this.list.tabIndex = 0;
    this.more = document.createElement("p");
    this.more.className = "quiet";
    holder.replaceChildren(this.axis, this.list, this.more);
  }

  /** Draw all rows. */
  draw(model) {
    this.critical = new Set(model.critical_path);
    const order = (node) => node.ready ?? node.sent ?? node.ended ?? Infinity;
    const nodes = [...model.nodes.values()];
    nodes.sort((a, b) => order(a) - order(b) || 0);
    this.more.textContent = nodes.length > MOST_ROWS ? `${nodes.length - MOST_ROWS} more nodes are not listed` : "";
    this.rows.clear();
    for (const node of nodes.slice(0, MOST_ROWS)) this.rows.set(node.node, this.row(node));
    this.list.replaceChildren(...[...this.rows.values()].map((row) => row.item));
    this.seconds = 0;
    this.update(model);
  }

  row(node) {
    const item = document.createElement("li");
    item.setAttribute("role", "option");
    item.id = `row-${this.rows.size}`;
    const sign = document.createElement("span");
    const name = document.createElement("bdi");
    name.className = this.critical.has(node.node) ? "name critical" : "name";
    name.textContent = name.title = node.node;
    const bar = make("svg", { viewBox: `0 0 ${WIDE} 14`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const took = document.createElement("span");
    took.className = "took";
    item.append(sign, name, bar, took);
    item.addEventListener("click", () => this.select(node.node));
    return { item, sign, bar, took };
  }

  /** Show what has changed: the nodes of these names, and those in flight. */
  update(model, names = null) {
    const isGrowing = this.grow(Math.max(model.now, this.least));
    for (const [name, row] of this.rows) {
      const node = model.nodes.get(name);
      const isInFlight = node.state === "running" || node.state === "queued";
      if (isGrowing || names === null || names.has(name) || isInFlight) this.updateRow(row, node, model.now);
    }
  }

  /** Make the axis longer where the run has outgrown it. */
  grow(now) {
    if (this.seconds && now <= this.seconds) return false;
    this.seconds = this.seconds ? now * 1.3 : Math.max(now, 0.001) * 1.02;
    const step = tickStep(this.seconds / MOST_TICKS);
    const ticks = [];
    for (let at = 0; at <= this.seconds * 0.97; at += step) {
      const tick = document.createElement("span");
      tick.textContent = at ? duration(at) : "0";
      tick.style.left = `${(100 * at) / this.seconds}%`;
      ticks.push(tick);
    }
    const scale = document.createElement("div");
    scale.append(...ticks);
    this.axis.replaceChildren(scale);
    return true;
  }

  updateRow(row, node, now) {
    const spans = spansOf(node, now);
    const scale = WIDE / this.seconds;
    const parts = spans.map(([part, start, end], number) => {
      const isFailed = node.state === "failed" && number === spans.length - 1;
      const width = Math.max((end - start) * scale, 1.5);
      return make("rect", { class: isFailed ? "failed" : part, x: start * scale, width, height: 14 });
    });
    for (const at of this.earlier?.get(node.node) ?? []) {
      parts.push(make("rect", { class: "last", x: at * scale, width: 2.5, height: 14 }));
    }
    row.bar.replaceChildren(...parts);
    row.sign.textContent = SIGNS[node.state];
    row.sign.className = `sign ${node.state}`;
    const { elements } = node;
    const count = elements ? `${doneOf(elements)}/${elements.known} · ` : "";
    const end = isEnded(node.state) ? spans.at(-1)?.[2] : now;
    const hasTimes = spans.length && node.state !== "skipped";
    row.took.textContent = count + (hasTimes ? duration(end - spans[0][1]) : node.state);
    row.item.setAttribute("aria-label", `${node.node}, ${node.state}, ${row.took.textContent}`);
  }

  /** Compare with another run: when its nodes began and ended, by name. */
  compare(run) {
    const moments = (node) => [node.sent ?? node.ready, node.ended].filter((at) => at !== null);
    this.earlier = run && new Map(run.nodes.map((node) => [node.node, moments(node)]));
    this.least = run?.seconds ?? 0;
    this.seconds = 0;
  }

  mark(selected, matches) {
    for (const [name, row] of this.rows) {
      const isSelected = name === selected;
      row.item.hidden = !matches(name);
      if (row.item.getAttribute("aria-selected") !== String(isSelected)) {
        row.item.setAttribute("aria-selected", isSelected);
        if (isSelected && !isNarrow.matches) row.item.scrollIntoView({ block: "nearest" });
      }
      if (isSelected) this.list.setAttribute("aria-activedescendant", row.item.id);
    }
    if (!this.rows.has(selected)) this.list.removeAttribute("aria-activedescendant");
  }

  /** The name of the row that is so many rows after this one. */
  beside(name, by) {
    const names = [...this.rows].filter(([, row]) => !row.item.hidden).map(([one]) => one);
    const place = names.indexOf(name);
    if (place < 0) return names[by > 0 ? 0 : names.length - 1] ?? null;
    return names[Math.min(names.length - 1, Math.max(0, place + by))];
  }
}

const isNarrow = matchMedia("(max-width: 700px)"); // the page scrolls then, which the panel heads

function tickStep(least) {
  if (least > 30) return [60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400].find((step) => step >= least) ?? Math.ceil(least / 86400) * 86400;
  const power = 10 ** Math.floor(Math.log10(least));
  return [power, 2 * power, 5 * power, 10 * power].find((step) => step >= least);
}
