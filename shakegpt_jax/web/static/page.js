"use strict";
// The page: connects the form, the text, the chances, the versions, the samples and the address.
// What is global here, shown_version.js and chances.js use as well, and this file uses their
// functions and the variables `current` and `pointed`. Each variable is set in its own file alone.

const data = JSON.parse($("data").textContent);
const { defaults, limits } = data; // as Python has them
const backend = makeBackend(data);
const vocabulary = Array.from(data.vocabulary);
const ids = new Map(vocabulary.map((character, id) => [character, id]));
const mark = modelMark(data);
const WRITING = "Writing…";
// The chances are at the bottom of the screen; as in page.css.
const SHEET = matchMedia("(max-width: 60rem) and (orientation: portrait), (max-width: 40rem)");

const view = textView($("text"), textEvents);
const panel = distributionPanel(vocabulary, (character) => branch(pointed, character), closeChances);
const form = controlsForm(vocabulary, onFormChange);
const tree = versionTree($("versions"), goTo);
const samples = samplesView($("samples"), (version) => {
  const known = tree.find(version) ?? version;
  setLength(known, version.target);
  goTo(known);
  view.focus();
});
const jobs = jobRunner(showBusy, showProblem);

function showBusy(busy) {
  if (!busy && document.activeElement === $("stop")) $("generate").focus();
  $("stop").hidden = !busy;
  $("continue").textContent = busy ? "Stop" : "Continue"; // the other Stop may be out of sight
  $("text-card").classList.toggle("writing", busy);
  if (busy) $("status").textContent = WRITING;
  else if ($("status").textContent === WRITING) $("status").textContent = "";
}

function showProblem(message, again = null) {
  $("status").textContent = "";
  $("problem").hidden = false;
  $("problem-text").textContent = message;
  $("retry").hidden = !again;
  $("retry").onclick = again;
  $("problem").scrollIntoView({ block: "nearest" });
}

function onFormChange(valid) {
  $("generate").disabled = $("compare").disabled = !valid;
  if (!valid && !jobs.busy) $("status").textContent = ""; // what is wrong comes first
  showNote();
}

function showSamples(shown) {
  document.body.classList.toggle("comparing", shown);
  $("samples-card").hidden = !shown;
  $("text-card").hidden = shown;
  $("copy-link").hidden = !shown && !current;
}

/** Returns what the form asks for, or null if something is wrong with it. */
function readForm() {
  $("problem").hidden = true;
  const { settings, length, promptProblem, optionsProblem } = form.read();
  return promptProblem || optionsProblem ? null : { settings, length };
}

function generate() {
  const wanted = readForm();
  if (!wanted) return;
  let version = makeVersion(wanted.settings, wanted.length);
  version = tree.find(version) ?? version;
  const same = version === current && version.tokens.length === wanted.length;
  setLength(version, wanted.length);
  select(version);
  if (same) $("status").textContent = "The same seed writes the same text. Another seed writes another one.";
}

function goTo(version) {
  select(version);
  if ($("text-card").getBoundingClientRect().top < 0) $("text-card").scrollIntoView();
}

function goOn() {
  $("problem").hidden = true;
  current.target = Math.min(limits.text, current.tokens.length + (form.read().length ?? defaults.length));
  select(current, { push: false });
}

/** Writes the samples that the form asks for; push: whether Back returns to what is shown now. */
async function compare({ push = true } = {}) {
  const wanted = readForm();
  if (!wanted) return;
  let shown = false;
  const done = await jobs.run((signal) => samples.start(wanted.settings, wanted.length,
    (version, onTokens) => writeTo(backend, version, wanted.length, (tokens) => {
      if (!shown) {
        showSamples((shown = true));
        setAddress(writeLink({ ...wanted.settings, length: wanted.length, changes: [], samples: true }, mark), push);
        bringIntoView($("samples-card"));
      }
      onTokens(tokens);
    }, signal)), () => compare({ push }));
  if (jobs.busy || !$("problem").hidden || $("samples-card").hidden) return;
  $("status").textContent = done ? "Done: four samples." : "Stopped.";
}

function closeSamples() {
  jobs.stop();
  if (current) showLink(current.tokens.length, true);
  else setAddress("#", true);
  showSamples(false);
  $("status").textContent = "";
  $("compare").focus();
}

/** Opens the link in the address, or an empty page if there is none. */
async function openAddress() {
  if (location.hash.length < 2) {
    showEmpty();
    return;
  }
  $("problem").hidden = true;
  let link;
  try {
    link = readLink(location.hash);
  } catch (error) {
    showProblem(`This link is damaged (${error.message}). Nothing was loaded.`);
    return;
  }
  const { length, changes, samples: several, ...settings } = link.state;
  const unknown = unknownCharacters(settings.prompt + changes.map(([, each]) => each).join(""), vocabulary);
  if (unknown.length) {
    showProblem(`Nothing was loaded from this link. ${nameUnknown(unknown)}`);
    return;
  }
  form.fill(settings, Math.min(length, limits.length));
  const fragment = location.hash;
  let version = null;
  if (several) await compare({ push: false });
  else {
    const done = await jobs.run(async (signal) => {
      version = await versionOfLink(backend, { ...settings, length, changes }, tree.find, signal);
    }, openAddress);
    if (!done) return;
    await select(version, { push: false });
  }
  if (link.mark !== mark && (several ? !$("samples-card").hidden : current === version)) {
    showProblem(`This link was made with ${describeMark(link.mark)}: its text may differ.`);
  }
}

async function copyLink() {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  $("status").textContent = copied || copyText(location.href) ? "The link is copied."
    : "Copy the address of this page: it is the link.";
}

/** Copies a text as the keyboard does, also where the clipboard is closed, as over plain HTTP. */
function copyText(text) {
  const field = element("textarea", "visually-hidden", text), focused = document.activeElement;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused.focus();
  return copied;
}

function colourText() {
  $("text").classList.toggle("coloured", $("colour").checked);
  $("legend").hidden = !$("colour").checked;
  colourPrompt();
}

function describeModel({ name, parameters, text, layers, heads, window, step, loss }) {
  const size = parameters < 1e5 ? count(parameters) : `${(parameters / 1e6).toFixed(parameters < 1e7 ? 1 : 0)} million`;
  $("about").textContent = `Press Generate: a small language model (${size} parameters)` +
    `${text ? ` that has read ${text}` : ""} makes up new text. It computes how likely each of its ` +
    `${count(vocabulary.length)} characters is to come next, and draws one at random.`;
  $("facts").textContent = [
    `Model ${name}`, `${layers} layers of ${heads} heads`, `sees the last ${count(window)} characters`,
    step !== null && `${count(step)} training steps`,
    loss !== null && `validation loss ${loss.toFixed(3)} nats per character`,
  ].filter(Boolean).join(" · ");
  $("ramp").append(...["100%", "50%", "10%", "1%", "≤0.1%"].map((label) => element("span", "", label)));
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
for (const [id, act] of Object.entries({
  stop: jobs.stop, continue: () => (jobs.busy ? jobs.stop() : goOn()), compare, "back-to-text": closeSamples,
  "to-parent": () => goTo(current.parent), "copy-link": copyLink,
})) $(id).addEventListener("click", () => act());
$("colour").addEventListener("change", colourText);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (pointed >= 0) closeChances();
  else if (jobs.busy) jobs.stop();
});
addEventListener("popstate", openAddress);

describeModel(data);
form.fill({ prompt: data.prompt, ...defaults }, defaults.length);
colourText(); // browsers keep the switch over a reload
if (backend.problem) showProblem(backend.problem);
else openAddress();
