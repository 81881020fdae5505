// The graph as SVG. Names are set as text, so that nothing in them is read as markup. Boxes lie in
// tiles above the edges, each painted by itself: a node that changes has no other tile painted anew.

import { SIGNS } from "./api.js";
import { endedOf, isDone } from "./model.js";

const SVG = "http://www.w3.org/2000/svg";
const STATES = ["completed", "failed", "running", "queued", "cancelled", "skipped", "interrupted", "pending"];
const [MARGIN, PADDING, SIGN_WIDTH, LABEL_HEIGHT, LINE_HEIGHT, BAR_HEIGHT] = [10, 11, 18, 30, 15, 14];
const SMALLEST_SCALE = 0.6;
const [TILE_WIDTH, TILE_HEIGHT] = [400, 200];

export function make(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

export class Graph {
  constructor(holder, select) {
    Object.assign(this, { holder, select, boxes: [], layout: null });
    this.boxOf = new Map();
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(holder);
  }

  close() {
    this.resized.disconnect();
  }

  draw(layout, model) {
    this.layout = layout;
    this.boxes = [];
    this.boxOf.clear();
    const [width, height] = [layout.width + 2 * MARGIN, layout.height + 2 * MARGIN];
    this.svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "graph" });
    this.svg.append(make("title", {}, "the graph of the run; the timeline below lists its nodes"));
    const all = make("g", { transform: `translate(${MARGIN} ${MARGIN})` });
    for (const edge of layout.edges) all.append(...edgeParts(edge));
    this.svg.append(all);
    this.paper = document.createElement("div");
    this.paper.className = "paper";
    this.paper.append(this.svg, ...tilesOf(layout.boxes).map((boxes) => this.tile(boxes, width, height)));
    this.holder.replaceChildren(this.paper);
    this.fit();
    this.update(model);
  }

  fit() {
    if (!this.layout) return;
    const width = this.layout.width + 2 * MARGIN;
    const scale = Math.min(1, Math.max(SMALLEST_SCALE, this.holder.clientWidth / width));
    this.paper.style.width = `${width * scale}px`;
    this.paper.style.height = `${(this.layout.height + 2 * MARGIN) * scale}px`;
  }

  /** A picture of these boxes, in its place on the paper, which is so wide and high. */
  tile(boxes, width, height) {
    const [left, top] = [Math.min(...boxes.map((box) => box.x)), Math.min(...boxes.map((box) => box.y))];
    const right = Math.max(...boxes.map((box) => box.x + box.width));
    const bottom = Math.max(...boxes.map((box) => box.y + box.height));
    const [x, y, wide, high] = [left - MARGIN, top - MARGIN, right - left + 2 * MARGIN, bottom - top + 2 * MARGIN];
    const svg = make("svg", { viewBox: `${x} ${y} ${wide} ${high}`, class: "graph", "aria-hidden": "true" });
    svg.append(...boxes.map((box) => this.box(box)));
    const tile = document.createElement("div");
    tile.className = "tile";
    const [percentWide, percentHigh] = [100 / width, 100 / height];
    tile.style.left = `${(x + MARGIN) * percentWide}%`;
    tile.style.top = `${(y + MARGIN) * percentHigh}%`;
    tile.style.width = `${wide * percentWide}%`;
    tile.style.height = `${high * percentHigh}%`;
    tile.append(svg);
    return tile;
  }

  box(box) {
    const group = make("g", { transform: `translate(${box.x} ${box.y})` });
    const size = { width: box.width, height: box.height };
    if (box.kind === "input") {
      group.append(make("title", {}, `inputs of the run: ${box.members.join(", ")}`));
      group.append(make("rect", { class: "input", ...size, rx: box.height / 2 }));
      const place = { x: box.width / 2, y: box.height / 2 + 4, "text-anchor": "middle", class: "line" };
      group.append(make("text", place, box.label));
      return group;
    }
    const isMany = box.kind !== "node";
    if (isMany) group.append(make("rect", { class: "outline", x: 4, y: 4, ...size, rx: 6 }));
    group.append(make("rect", { class: "outline", ...size, rx: 6 }));
    const drawn = { box, group, title: make("title"), sign: make("text", { class: "sign", x: PADDING, y: 20 }) };
    const left = PADDING + SIGN_WIDTH;
    group.append(drawn.title, drawn.sign);
    const label = `\u2068${box.label}\u2069${box.suffix ? ` ${box.suffix}` : ""}`;
    group.append(make("text", { class: "name", x: left, y: 20 }, label));
    box.lines.forEach((line, number) => {
      const y = LABEL_HEIGHT + 6 + LINE_HEIGHT * number;
      group.append(make("text", { class: "line", x: left, y }, line));
    });
    if (isMany) {
      drawn.bar = make("g", { transform: `translate(${PADDING} ${box.height - BAR_HEIGHT})` });
      drawn.count = make("text", { class: "line", x: box.width - 2 * PADDING, y: 6, "text-anchor": "end" });
      drawn.parts = STATES.map((state) => make("rect", { class: state, height: 5 }));
      drawn.bar.append(...drawn.parts, drawn.count);
      group.append(drawn.bar);
    }
    group.addEventListener("click", () => this.select(box));
    this.boxes.push(drawn);
    for (const name of box.members) this.boxOf.set(name, drawn);
    return group;
  }

  /** Show the states of the nodes of these names, or of all. */
  update(model, names = null) {
    const drawn = names === null ? this.boxes : new Set([...names].map((name) => this.boxOf.get(name)));
    for (const box of drawn) if (box) this.updateBox(box, model);
  }

  updateBox(drawn, model) {
    const { box } = drawn;
    const nodes = box.members.map((name) => model.nodes.get(name)).filter(Boolean);
    const state = together(nodes.map((node) => node.state), model.status);
    if (drawn.state !== state) {
      drawn.state = state;
      drawn.sign.textContent = SIGNS[state];
      drawn.title.textContent = `${box.members.slice(0, 20).join(", ")}: ${state}`;
    }
    if (drawn.bar) {
      const counts = countsOf(nodes);
      const total = Math.max(1, Object.values(counts).reduce((a, b) => a + b, 0));
      const done = STATES.filter(isDone).reduce((sum, one) => sum + (counts[one] ?? 0), 0);
      drawn.count.textContent = `${done}/${total}`;
      const wide = box.width - 2 * PADDING - 8 * drawn.count.textContent.length;
      let x = 0;
      STATES.forEach((one, number) => {
        const width = (Math.max(0, wide) * (counts[one] ?? 0)) / total;
        drawn.parts[number].setAttribute("x", x);
        drawn.parts[number].setAttribute("width", width);
        x += width;
      });
    }
    this.style(drawn);
  }

  /** Mark what is selected, and what a search or the filter leaves. */
  mark(selected, matches) {
    const isNew = selected !== this.selected;
    this.selected = selected;
    for (const drawn of this.boxes) {
      drawn.isSelected = selected !== null && drawn.box.members.includes(selected);
      drawn.isDim = !drawn.box.members.some(matches);
      this.style(drawn);
    }
    const isWide = innerWidth > 700; // below that the graph is not beside the list
    if (isNew && isWide) this.boxOf.get(selected)?.group.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  style(drawn) {
    const marks = `${drawn.isSelected ? " selected" : ""}${drawn.isDim ? " dim" : ""}`;
    const kind = `box ${drawn.state}${marks}`;
    if (kind !== drawn.kind) drawn.group.setAttribute("class", kind);
    drawn.kind = kind;
  }
}

/** The boxes, those that lie near each other together. */
function tilesOf(boxes) {
  const tiles = new Map();
  for (const box of boxes) {
    const place = `${Math.floor(box.x / TILE_WIDTH)} ${Math.floor(box.y / TILE_HEIGHT)}`;
    if (!tiles.has(place)) tiles.set(place, []);
    tiles.get(place).push(box);
  }
  return [...tiles.values()];
}

function edgeParts(edge) {
  const points = edge.points;
  const tip = points[points.length - 1];
  const line = points.slice(0, -1);
  const [start, ...rest] = line;
  const curve = `M${start}C${rest.map((point) => point.join(",")).join(" ")}`;
  const path = make("path", { class: edge.is_order ? "edge order" : "edge", d: curve });
  if (edge.label) path.append(make("title", {}, edge.label));
  const [x, y] = line[line.length - 1];
  const length = Math.max(Math.hypot(tip[0] - x, tip[1] - y), 0.1);
  const [a, b] = [(-3.2 * (tip[1] - y)) / length, (3.2 * (tip[0] - x)) / length];
  const corners = `${x + a},${y + b} ${tip} ${x - a},${y - b}`;
  return [path, make("polygon", { class: "tip", points: corners })];
}

/** The state of several nodes together, of a run that has this status. */
function together(states, status) {
  const found = new Set(states);
  if (found.size <= 1) return states[0] ?? "pending";
  const isOver = !["pending", "running"].includes(status);
  const isOn = !isOver && ["running", "queued", "pending"].some((state) => found.has(state));
  if (isOn && !found.has("failed")) return "running";
  const order = ["failed", "interrupted", "running", "queued", "cancelled", "pending"];
  return order.find((state) => found.has(state)) ?? "completed";
}

function countsOf(nodes) {
  const [first] = nodes;
  if (nodes.length === 1 && first.elements?.known) {
    const counts = Object.fromEntries(STATES.map((state) => [state, first.elements[state] ?? 0]));
    counts.pending = first.elements.known - endedOf(first.elements) - first.elements.in_flight.size;
    return counts;
  }
  const counts = {};
  for (const { state } of nodes) counts[state] = (counts[state] ?? 0) + 1;
  return counts;
}
