// Which page is shown, the keys, and the exchange of the token.

import { html, render } from "./vendor/lit-html.js";
import { Refused, get, post, shown } from "./api.js";
import { RunPage } from "./run.js";
import { RunsPage } from "./runs.js";

const root = document.querySelector("#page");
let page = null;
let run;
const about = { control: false, values: false, graphs: [] }; // until the server tells

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  try {
    if (token !== null) {
      history.replaceState(null, "", location.pathname + location.search);
      await post("session", { token });
    }
    const asking = get("about");
    turn(); // does not wait for it
    Object.assign(about, await asking);
  } catch (error) {
    page?.close();
    const text = error instanceof Refused ? error.message : "The server cannot be reached.";
    root.replaceChildren();
    delete root._$litPart$;
    render(html`<main><h1>taskiq-flow</h1><p class="notice" role="alert">${text}</p></main>`, root);
    return;
  }
  page.render();
  addEventListener("popstate", turn);
  addEventListener("keydown", press);
}

function turn() {
  const wanted = shown().get("run");
  if (page !== null && wanted === run) {
    page.addressChanged?.();
    return;
  }
  run = wanted;
  page?.close();
  root.replaceChildren();
  delete root._$litPart$; // the next page renders into it anew
  page = run === null ? new RunsPage(root, about) : new RunPage(root, run, about);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.matches("input[type=search], input[type=text], select, textarea");
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, summary, a, input")) return;
  if (event.key === "?") document.querySelector("#help").showModal();
  else if (!page.key(event.key)) return;
  event.preventDefault();
}

begin();
