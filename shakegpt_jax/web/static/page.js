// The page with a prompt: connects the form, the text, the versions, the samples and the address.

import { $, count, element, input } from "./common.js";
import { controlsForm, nameUnknown } from "./controls.js";
import { facts, limits, vocabulary } from "./facts.js";
import { describeMark, ownMark, readLink, writeLink } from "./link.js";
import { samplesView } from "./samples.js";
import { bringIntoView, setAddress, versionView } from "./shown_version.js";
import { makeVersion, setLength } from "./tree.js";
import { jobRunner, versionOfLink, writeTo } from "./writer.js";

/** @import {Backend} from "./facts.js" */
/** @import {Version} from "./tree.js" */

const WRITING = "Writing…";

/** @param {Backend} backend */
export function startPage(backend) {
  const jobs = jobRunner(showBusy, showProblem);
  const form = controlsForm(onFormChange);
  const shown = versionView(backend, jobs, form, () => showSamples(false));
  const samples = samplesView($("samples"), (version) => {
    const known = shown.find(version) ?? version;
    setLength(known, version.target);
    shown.goTo(known);
    shown.chances.view.focus();
  });

  /** @param {boolean} valid */
  function onFormChange(valid) {
    input("generate").disabled = input("compare").disabled = !valid;
    if (!valid && !jobs.busy) $("status").textContent = ""; // what is wrong comes first
    shown.showNote();
  }

  /** @param {boolean} comparing */
  function showSamples(comparing) {
    document.body.classList.toggle("comparing", comparing);
    $("samples-card").hidden = !comparing;
    $("text-card").hidden = comparing;
    $("copy-link").hidden = !comparing && !shown.current;
  }

  /** Returns what the form asks for, or null if something is wrong with it. */
  function readForm() {
    $("problem").hidden = true;
    const { settings, length, promptProblem, optionsProblem } = form.read();
    return promptProblem || optionsProblem || length === null ? null : { settings, length };
  }

  function generate() {
    const wanted = readForm();
    if (!wanted) return;
    let version = makeVersion(wanted.settings, wanted.length);
    version = shown.find(version) ?? version;
    const same = version === shown.current && version.tokens.length === wanted.length;
    setLength(version, wanted.length);
    shown.select(version);
    if (same) $("status").textContent = "The same seed writes the same text. Another seed writes another one.";
  }

  function goOn() {
    if (jobs.busy) return jobs.stop();
    const version = shown.current;
    if (!version) return;
    $("problem").hidden = true;
    version.target = Math.min(limits.text, version.tokens.length + (form.read().length ?? facts.defaults.length));
    shown.select(version, { push: false });
  }

  /** Writes the samples that the form asks for; push: whether Back returns to what is shown now. */
  async function compare({ push = true } = {}) {
    const wanted = readForm();
    if (!wanted) return;
    let began = false;
    const done = await jobs.run((signal) => samples.start(wanted.settings, wanted.length,
      (version, onTokens) => writeTo(backend, version, wanted.length, (tokens) => {
        if (!began) {
          began = true;
          showSamples(true);
          setAddress(writeLink({ ...wanted, changes: [], samples: true }), push);
          bringIntoView($("samples-card"));
        }
        onTokens(tokens);
      }, signal)), () => compare({ push }));
    if (jobs.busy || !$("problem").hidden || $("samples-card").hidden) return;
    $("status").textContent = done ? "Done: four samples." : "Stopped.";
  }

  function closeSamples() {
    jobs.stop();
    shown.pushLink();
    showSamples(false);
    $("status").textContent = "";
    $("compare").focus();
  }

  /** Opens the link in the address, or an empty page if there is none. */
  async function openAddress() {
    if (location.hash.length < 2) return shown.showEmpty();
    $("problem").hidden = true;
    let link;
    try {
      link = readLink(location.hash);
    } catch (error) {
      const why = /** @type {Error} */ (error).message;
      return showProblem(`This link is damaged (${why}). Nothing was loaded.`);
    }
    const unknown = nameUnknown(link.settings.prompt + link.changes.map(([, character]) => character).join(""));
    if (unknown) return showProblem(`Nothing was loaded from this link. ${unknown}`);
    form.fill(link.settings, Math.min(link.length, limits.length));
    let version = /** @type {Version | null} */ (null);
    if (link.samples) await compare({ push: false });
    else {
      await jobs.run(async (signal) => {
        version = await versionOfLink(backend, link, shown.find, signal);
      }, openAddress);
      if (!version) return;
      await shown.select(version, { push: false });
    }
    if (link.mark !== ownMark && (link.samples ? !$("samples-card").hidden : shown.current === version)) {
      showProblem(`This link was made with ${describeMark(link.mark)}: its text may differ.`);
    }
  }

  function colourText() {
    const coloured = input("colour").checked;
    $("text").classList.toggle("coloured", coloured);
    $("legend").hidden = !coloured;
    shown.chances.colourPrompt();
  }

  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  for (const [id, act] of Object.entries({
    stop: jobs.stop, continue: goOn, compare: () => compare(), "back-to-text": closeSamples, "copy-link": copyLink,
    "to-parent": () => shown.current?.parent && shown.goTo(shown.current.parent),
  })) $(id).addEventListener("click", () => { act(); });
  $("colour").addEventListener("change", colourText);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (shown.chances.open) shown.chances.close();
    else if (jobs.busy) jobs.stop();
  });
  addEventListener("popstate", openAddress);

  describeModel();
  const { length, ...sampling } = facts.defaults;
  form.fill({ prompt: facts.prompt, ...sampling }, length);
  colourText(); // browsers keep the switch over a reload
  if (backend.problem) showProblem(backend.problem);
  else openAddress();
}

/** @param {boolean} busy */
function showBusy(busy) {
  if (!busy && document.activeElement === $("stop")) $("generate").focus();
  $("stop").hidden = !busy;
  $("continue").textContent = busy ? "Stop" : "Continue"; // the other Stop may be out of sight
  $("text-card").classList.toggle("writing", busy);
  if (busy) $("status").textContent = WRITING;
  else if ($("status").textContent === WRITING) $("status").textContent = "";
}

/** @param {string} message @param {(() => void) | null} again */
function showProblem(message, again = null) {
  $("status").textContent = "";
  $("problem").hidden = false;
  $("problem-text").textContent = message;
  $("retry").hidden = !again;
  $("retry").onclick = again;
  $("problem").scrollIntoView({ block: "nearest" });
}

async function copyLink() {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  $("status").textContent = copied || copyText(location.href) ? "The link is copied."
    : "Copy the address of this page: it is the link.";
}

/**
 * Copies a text as the keyboard does, also where the clipboard is closed, as over plain HTTP.
 * @param {string} text
 */
function copyText(text) {
  const field = element("textarea", "visually-hidden", text);
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return copied;
}

function describeModel() {
  const { name, parameters, text, layers, heads, window, step, loss } = facts;
  const size = parameters < 1e5 ? count(parameters) : `${(parameters / 1e6).toFixed(parameters < 1e7 ? 1 : 0)} million`;
  $("about").textContent = `Press Generate: a small language model (${size} parameters)` +
    `${text ? ` that has read ${text}` : ""} makes up new text. It computes how likely each of its ` +
    `${count(vocabulary.length)} characters is to come next, and draws one at random.`;
  $("facts").textContent = [
    `Model ${name}`, `${layers} layers of ${heads} heads`, `sees the last ${count(window)} characters`,
    step !== null && `${count(step)} training steps`,
    loss !== null && `validation loss ${loss.toFixed(3)} nats per character`,
  ].filter(Boolean).join(" · ");
}
