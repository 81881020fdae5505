// All about one node.

import { html, nothing } from "./vendor/lit-html.js";
import { BASE, SIGNS, duration, nodePath, size } from "./api.js";

export const status = (state) => html`<span class="sign ${state}">${SIGNS[state]}</span> ${state}`;

/** `node`: what the server tells of it. `select`: chooses another node. `buttons`: what can be done. */
export function panel(run, node, { select, close, buttons }) {
  const times = [["waited", node.waiting], ["queued", node.queued], ["ran", node.running]]
    .filter(([, seconds]) => seconds > 0);
  return html`
    <header>
      <h2><bdi>${node.node}</bdi></h2>
      <button class="plain" @click=${close} aria-label="Close">✕</button>
    </header>
    <p class="facts">${status(node.state)}
      ${node.source && node.source !== "task" ? html` · by ${node.source}` : nothing}
      ${node.reason ? html` · because of ${node.reason === "failure" ? "a failure" : "a condition"}` : nothing}
      ${node.attempts > 1 ? html` · ${node.attempts} attempts` : nothing}
      ${times.length ? html` · ${node.elements ? "sums over its elements: " : nothing}${times.map(([what, seconds], place) =>
        html`${place ? " · " : nothing}<span class="whole">${what} ${duration(seconds)}</span>`)}` : nothing}
    </p>
    ${buttons.length ? html`<p class="buttons">${buttons}</p>` : nothing}
    ${node.item ? html`<p><span class="quiet">item</span> <bdi>${node.item}</bdi></p>` : nothing}
    ${node.worker ? html`<p class="quiet">worker <bdi>${node.worker}</bdi></p>` : nothing}
    ${node.error ? errorPart(node.error, node.state) : nothing}
    ${node.because_of.length ? html`<h3>Skipped because of</h3>${links(node.because_of, select)}` : nothing}
    ${node.elements ? elementsPart(node, select) : nothing}
    ${node.inputs.length
      ? html`<h3>Takes</h3>
        <ul class="values">${node.inputs.map((input) => html`<li>
          ${link(input.node, select)} ${input.value ? valuePart(input.value) : html`<span class="quiet">${status(input.state)}</span>`}
        </li>`)}</ul>`
      : nothing}
    ${node.value
      ? html`<h3>Gives</h3><div class="values">${valuePart(node.value)}
        ${node.has_value ? html`<a href="${BASE}/${nodePath(run, node.node, "/value")}" download>whole value</a>` : nothing}</div>`
      : nothing}
    ${node.spans.length > 1 || node.attempts > 1 ? spansPart(node) : nothing}`;
}

function errorPart(error, state) {
  return html`
    ${state === "failed" ? nothing : html`<h3>The attempt before failed</h3>`}
    <p class="error"><strong>✗ ${error.type}</strong>${error.message ? `: ${error.message}` : ""}</p>
    ${error.traceback ? tracebackPart(error) : nothing}`;
}

/** The user's own frames, and behind a click also those that called them. */
function tracebackPart({ frames, traceback }) {
  return html`<details open><summary>traceback</summary><pre tabindex="0">${frames}</pre>
    ${frames === traceback.trimEnd() ? nothing
      : html`<details><summary>all frames</summary><pre tabindex="0">${traceback}</pre></details>`}</details>`;
}

function valuePart(value) {
  const about = [value.kind, size(value.size)].filter(Boolean).join(", ");
  return html`<span class="quiet">${about}</span><pre tabindex="0">${value.text}</pre>`;
}

/** The first 200 letters of a text, which says that it goes on. */
function beginning(text) {
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

function elementsPart(node, select) {
  const states = ["completed", "failed", "running", "queued", "skipped", "cancelled", "interrupted"];
  const present = states.filter((state) => node.elements[state]);
  return html`
    <h3>${node.elements.known} elements</h3>
    <p class="facts">${present.map((state) => html`<span>${SIGNS[state]} ${node.elements[state]} ${state}</span> `)}</p>
    <ul class="values">${node.listed.map((element) => html`<li>
      ${status(element.state)} ${link(element.node, select)} ${element.item ? html`<bdi>(${element.item})</bdi>` : nothing}
      ${element.error ? html`<span class="quiet">${element.error.type}: ${beginning(element.error.message)}</span>` : nothing}
    </li>`)}</ul>`;
}

function spansPart(node) {
  const isOfOne = !node.elements; // the spans of a mapped node are of no attempt
  return html`<h3>${isOfOne ? "Times" : "Times, from its first element to its last"}</h3>
    <table><thead><tr>${isOfOne ? html`<th>attempt</th>` : nothing}<th>part</th><th>from</th><th>for</th></tr></thead><tbody>
    ${node.spans.slice(-60).map((span) => html`<tr>
      ${isOfOne ? html`<td>${span.attempt || ""}</td>` : nothing}<td>${span.part}</td>
      <td>${duration(span.start)}</td><td>${duration(span.end - span.start)}</td></tr>`)}
    </tbody></table>`;
}

const link = (name, select) =>
  html`<button class="link" @click=${() => select(name)}><bdi>${name}</bdi></button>`;

const links = (names, select) => html`<p>${names.map((name) => html`${link(name, select)} `)}</p>`;
