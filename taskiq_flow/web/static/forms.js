// The forms that begin a run: a new one, and one that runs nodes of an earlier one again.

import { html, nothing, render } from "./vendor/lit-html.js";
import { get, post, runPath, show } from "./api.js";

/** Ask for the graph and the inputs of a new run, and begin it. */
export async function newRun(about) {
  const { dags } = await get("dags");
  const known = dags.filter((dag) => about.graphs.includes(dag.name));
  const choose = (event) => {
    const form = event.target.form;
    const dag = known.find((one) => one.name === event.target.value);
    form.elements.inputs.value = emptyInputs(dag);
    form.querySelector(".optional").textContent = optionalInputs(dag);
  };
  ask("New run", "Begin", html`
    <label>Graph <select name="graph" @change=${choose}>
      ${known.map((dag) => html`<option value=${dag.name}>${dag.name}</option>`)}</select></label>
    ${inputsField("Inputs, as a JSON object", emptyInputs(known[0]))}
    <p class="quiet optional">${optionalInputs(known[0])}</p>
    ${runField()}
    ${tagsField()}`,
  (fields) => post("runs", { graph: fields.graph.value, ...given(fields), ...runOf(fields) }));
}

/** Ask from which node on, and with which other inputs, and run that again. */
export function rerun(run, names, node) {
  ask(`Run ${run} again`, "Run again", html`
    <label>From <select name="from">
      <option value="">only what takes other inputs</option>
      ${names.map((name) => html`<option value=${name} ?selected=${name === node}>${name}</option>`)}</select></label>
    ${inputsField("Other inputs, as a JSON object", "{}")}
    ${runField()}
    ${tagsField()}
    <label><input type="checkbox" name="changed"> the graph may have changed</label>`,
  (fields) => post(runPath(run, "/rerun"), {
    from: fields.from.value ? [fields.from.value] : [],
    allow_changed: fields.changed.checked, ...given(fields), ...runOf(fields),
  }));
}

/** The inputs that a graph needs, to be filled in. */
function emptyInputs(dag) {
  const keys = (dag?.inputs ?? []).filter((key) => !dag.optional.includes(key));
  return keys.length ? `{\n${keys.map((key) => `  ${JSON.stringify(key)}: null`).join(",\n")}\n}` : "{}";
}

const optionalInputs = (dag) =>
  (dag?.optional.length ? `It also takes, with defaults: ${dag.optional.join(", ")}` : "");

const inputsField = (label, text) => html`
  <label>${label} <textarea name="inputs" rows="6" spellcheck="false" .value=${text}></textarea></label>`;

const runField = () => html`
  <label>Name of the run <input name="run" type="text" autocomplete="off" placeholder="a new one"></label>`;

const tagsField = () => html`
  <label>Tags, with commas between them <input name="tags" type="text" autocomplete="off"></label>`;

function given(fields) {
  try {
    return { inputs: JSON.parse(fields.inputs.value.trim() || "{}") };
  } catch (error) {
    throw new Error(`The inputs are no JSON: ${error.message}`);
  }
}

function runOf(fields) {
  const tags = fields.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean);
  return { tags, ...(fields.run.value ? { run: fields.run.value } : {}) };
}

/** Show a form until it is closed, or until `send` has begun a run, which is shown then. */
function ask(title, button, fields, send) {
  const dialog = document.querySelector("#form");
  let [refusal, isSending] = ["", false];
  const submit = async (event) => {
    event.preventDefault();
    if (isSending) return;
    [refusal, isSending] = ["", true];
    draw();
    try {
      const { run } = await send(event.target.elements);
      dialog.close();
      show({ run, node: null, fold: null, open: null });
      dispatchEvent(new PopStateEvent("popstate"));
    } catch (error) {
      refusal = error.message;
    }
    isSending = false;
    draw();
  };
  const draw = () => render(html`
    <form @submit=${submit}>
      <h2 id="form-title">${title}</h2>
      ${fields}
      ${refusal ? html`<p class="notice" role="alert">${refusal}</p>` : nothing}
      <p class="buttons"><button ?disabled=${isSending}>${button}</button>
        <button type="button" @click=${() => dialog.close()}>Cancel</button></p>
    </form>`, dialog);
  dialog.replaceChildren();
  delete dialog._$litPart$;
  draw();
  dialog.showModal();
}
