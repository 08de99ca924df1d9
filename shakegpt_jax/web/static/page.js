"use strict";
// The page: connects the form, the text, the chances, the versions, the samples and the address.

const data = JSON.parse(document.getElementById("data").textContent);
const backend = makeBackend(data);
const vocabulary = Array.from(data.vocabulary);
const ids = new Map(vocabulary.map((character, id) => [character, id]));
const mark = modelMark(data);
const DEFAULTS = { temperature: 0.8, topK: null, topP: null, seed: 0, length: 500 };
const SHEET = matchMedia("(max-width: 60rem)"); // the chances are at the bottom of the screen
const $ = (id) => document.getElementById(id);

let current = null; // the version that is shown
let pointed = -1, held = false; // the character whose chances are shown; whether it stays
const promptScores = new Map(); // of each prompt, the log-probabilities before its characters

const view = textView($("text"), {
  point: (index, byMouse = false) => {
    if (!byMouse || !(held || SHEET.matches)) showChances(index);
  },
  choose: (index) => {
    held = !(held && pointed === index);
    if (!held && SHEET.matches) closePanel();
    else showChances(index);
    view.reveal(index); // above the sheet
  },
  enter: () => {
    held = true;
    if (pointed >= 0) showChances(pointed);
    panel.focus();
  },
  first: () => (current ? promptLength(current) : 0),
});
const panel = distributionPanel(vocabulary, (character) => branch(pointed, character), closePanel);
const form = controlsForm(vocabulary, onFormChange);
const tree = versionTree($("versions"), (version) => select(version));
const samples = samplesView($("samples"), (version) => select(tree.find(version) ?? version));
const jobs = jobRunner(showBusy, showProblem);

const promptLength = (version) => Array.from(version.settings.prompt).length;
const logProbOf = ({ character, logProbs }) => logProbs[ids.get(character)];

function showBusy(busy) {
  $("stop").hidden = !busy;
  $("continue").hidden = busy || !current || !$("samples-card").hidden;
  if (busy) $("status").textContent = "Writing…";
}

function showProblem(message, again = null) {
  $("status").textContent = "";
  $("problem").hidden = false;
  $("problem-text").textContent = message;
  $("retry").hidden = !again;
  $("retry").onclick = again;
}

function onFormChange(valid) {
  $("generate").disabled = $("compare").disabled = !valid;
  showNote();
}

function showNote() {
  const notes = current ? ["Grey: your prompt."] : [];
  if (current?.changes.length) notes.push("Blue: what you chose.");
  if (current?.found?.problem) notes.push(`Copies of the training text are not known: ${current.found.problem}`);
  else if (current?.found?.stretches.length) {
    notes.push(`Underlined: ${current.found.shortest} or more characters that stand in the training text, ` +
      "word for word. Click them to see where.");
  }
  if (current && versionKey({ settings: form.read().settings, changes: [] }) !==
      versionKey({ settings: current.settings, changes: [] })) {
    notes.push("The settings above have changed: Generate uses them, Continue keeps those of this text.");
  }
  $("text-note").textContent = notes.join(" ");
}

function showSamples(shown) {
  document.body.classList.toggle("comparing", shown);
  $("samples-card").hidden = !shown;
  $("text-card").hidden = shown;
  $("copy-link").hidden = shown || !current;
}

/** Shows a version, and its link in the address. */
function show(version, { push, at = -1 }) {
  current = version;
  (function add(each) {
    if (each.parent) add(each.parent);
    if (!tree.find(each)) tree.add(each);
  })(version);
  showSamples(false);
  $("problem").hidden = true;
  $("empty").hidden = true;
  $("text").hidden = false;
  $("versions-card").hidden = false;
  closePanel();
  view.clear();
  view.append(Array.from(version.settings.prompt, (character) => ({ character, className: "prompt" })));
  addTokens(version.tokens, version);
  view.flush();
  tree.show(version);
  if (versionKey({ settings: form.read().settings, changes: [] }) !== versionKey({ ...version, changes: [] })) {
    form.fill(version.settings);
  }
  showLink(version.target, push);
  finish(version);
  colourPrompt();
  if (at >= 0) {
    held = !SHEET.matches; // there, the text that is new matters more
    showChances(at);
    if (!held) closePanel();
  }
  bringIntoView($("text-card"));
}

/** Scrolls to a card whose top is far down, as on a phone below the form. */
function bringIntoView(card) {
  if (card.getBoundingClientRect().top > 0.6 * innerHeight) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    card.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }
}

function addTokens(tokens, version) {
  const changed = new Set(version.changes.map(([place]) => place));
  const start = view.length - promptLength(version);
  view.append(tokens.map((token, i) => ({
    character: token.character,
    logProb: logProbOf(token),
    className: changed.has(start + i) ? "changed" : "",
  })));
}

function showLink(length, push = false) {
  const link = writeLink({ ...current.settings, changes: current.changes, length }, mark);
  if (push && link !== location.hash) history.pushState(null, "", link);
  else history.replaceState(null, "", link);
}

/** Looks up what stands in the training text, once a version has all of its text. */
async function finish(version) {
  showNote();
  const text = versionText(version);
  if (version.found?.text !== text) {
    if (version.tokens.length < version.target) return;
    version.found = { text, stretches: [], ...(await backend.verbatim(text)) };
  }
  if (current !== version || view.length !== Array.from(text).length) return;
  view.underline(version.found.stretches);
  showNote();
}

/** Goes to a version, and writes what it lacks; shows it once there is something new to see. */
async function select(version, { push = true, at = -1 } = {}) {
  jobs.stop();
  const known = tree.find(version) === version;
  if (known || version.tokens.length >= version.target) show(version, { push, at });
  if (version.tokens.length >= version.target) {
    $("status").textContent = "";
    showBusy(false);
    return;
  }
  const done = await jobs.run((signal) => writeTo(backend, version, version.target, (tokens) => {
    if (current !== version) show(version, { push, at });
    else addTokens(tokens, version);
  }, signal), () => { version.target = Math.max(version.target, version.tokens.length + 1); select(version); });
  if (current !== version) return;
  if (!done && !jobs.busy) version.target = version.tokens.length;
  if (done || !jobs.busy) settle(done);
}

function settle(done) {
  view.flush();
  $("plain-text").textContent = versionText(current);
  if ($("problem").hidden) {
    $("status").textContent = `${done ? "Done" : "Stopped"}: ${count(current.tokens.length)} characters.`;
  }
  showLink(current.tokens.length);
  tree.show(current);
  showBusy(false);
  finish(current);
}

function branch(index, character) {
  if (!current || index < 0) return;
  const place = index - promptLength(current);
  const version = place < 0 ? branchOffPrompt(index, character)
    : character === current.tokens[place].character ? current : branchOff(current, place, character);
  const known = tree.find(version);
  if (known === current) return;
  select(known ?? version, { at: index });
}

/** Returns the version that the same dice write after another prompt. */
function branchOffPrompt(index, character) {
  const prompt = Array.from(current.settings.prompt);
  prompt[index] = character;
  return makeVersion({ ...current.settings, prompt: prompt.join("") }, current.target, {
    changes: [], tokens: [],
  });
}

function showChances(index) {
  pointed = index;
  view.mark(index);
  const start = promptLength(current), place = index - start;
  const text = Array.from(versionText(current));
  const stretch = current.found?.stretches?.filter(({ start: a, end: b }) => a <= index && index < b)
    .sort((a, b) => b.end - b.start - (a.end - a.start))[0];
  const logProbs = place < 0 ? promptScores.get(current.settings.prompt)?.[index] ?? null
    : current.tokens[place].logProbs;
  if (place < 0 && !promptScores.has(current.settings.prompt)) scorePrompt();
  const changed = current.changes.some(([each]) => each === place);
  panel.show({
    title: `${place < 0 ? "Prompt: " : ""}${spokenCharacter(text[index])}`,
    character: text[index],
    logProbs,
    held,
    stretch: stretch && { ...stretch, text: text.slice(stretch.start, stretch.end) },
    note: logProbs ? (changed ? "You chose this one. " : "") +
      "Choose another one to see what the same dice would have written after it." +
      (held ? "" : " Click the character to hold it here.")
      : index ? "" : "The first character is not predicted.",
  });
}

function closePanel() {
  const inside = $("panel").contains(document.activeElement);
  [held, pointed] = [false, -1];
  view.mark(-1);
  panel.clear();
  if (inside) $("text").focus({ preventScroll: true });
}

async function scorePrompt() {
  const { prompt } = current.settings;
  if (promptScores.has(prompt)) return;
  promptScores.set(prompt, null);
  try {
    promptScores.set(prompt, await backend.score(prompt));
  } catch {
    promptScores.delete(prompt); // it stays grey
    return;
  }
  if (current?.settings.prompt !== prompt) return;
  colourPrompt();
  if (pointed >= 0 && pointed < promptLength(current)) showChances(pointed);
}

function colourPrompt() {
  if (!$("colour").checked || !current) return;
  const scores = promptScores.get(current.settings.prompt);
  if (!scores) scorePrompt();
  else Array.from(current.settings.prompt).forEach((character, i) => {
    if (scores[i]) view.colour(i, scores[i][ids.get(character)]);
  });
}

/** Opens the link in the address, or an empty page if there is none. */
async function openAddress() {
  $("problem").hidden = true;
  if (location.hash.length < 2) {
    jobs.stop();
    current = null;
    showSamples(false);
    closePanel();
    view.clear();
    $("text").hidden = $("continue").hidden = true;
    $("empty").hidden = false;
    tree.show(null);
    showNote();
    return;
  }
  let link;
  try {
    link = readLink(location.hash);
  } catch (error) {
    showProblem(`This link is damaged (${error.message}). Nothing was loaded.`);
    return;
  }
  const { length, changes, ...settings } = link.state;
  const unknown = unknownCharacters(settings.prompt + changes.map(([, c]) => c).join(""), vocabulary);
  if (unknown.length) {
    showProblem(`Nothing was loaded from this link. ${nameUnknown(unknown)}`);
    return;
  }
  form.fill(settings, Math.min(length, MOST_AT_ONCE));
  let version;
  const done = await jobs.run(async (signal) => {
    version = await versionOfLink(backend, link.state, tree.find, signal);
  }, openAddress);
  if (!done) return;
  await select(version, { push: false });
  if (link.mark !== mark) {
    showProblem(`This link was made with another model (${link.mark.slice(0, -9)}): its text may differ.`);
  }
}

function readForm() {
  const { settings, length, problems } = form.read();
  return problems.length ? null : { settings, length };
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = readForm();
  if (!wanted) return;
  $("problem").hidden = true;
  const fresh = makeVersion(wanted.settings, wanted.length);
  const version = tree.find(fresh) ?? fresh;
  version.target = wanted.length;
  version.tokens.splice(wanted.length);
  select(version);
});
$("stop").addEventListener("click", jobs.stop);
$("continue").addEventListener("click", () => {
  $("problem").hidden = true;
  current.target = Math.min(MAX_LENGTH, current.tokens.length + (form.read().length ?? DEFAULTS.length));
  select(current, { push: false });
});
async function compare() {
  const wanted = readForm();
  if (!wanted) return;
  $("problem").hidden = true;
  let shown = false;
  const done = await jobs.run((signal) => samples.start(wanted.settings, wanted.length,
    (version, onTokens) => writeTo(backend, version, wanted.length, (tokens) => {
      if (!shown) {
        showSamples((shown = true));
        bringIntoView($("samples-card"));
      }
      onTokens(tokens);
    }, signal)), compare);
  if (shown) $("status").textContent = done ? "Done: four samples." : "Stopped.";
}
$("compare").addEventListener("click", compare);
$("back-to-text").addEventListener("click", () => {
  jobs.stop();
  showSamples(false);
  $("status").textContent = "";
  showBusy(false);
});
$("colour").addEventListener("change", () => {
  $("text").classList.toggle("coloured", $("colour").checked);
  $("legend").hidden = !$("colour").checked;
  colourPrompt();
});
$("copy-link").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("status").textContent = "The link is copied.";
  } catch {
    $("status").textContent = "Copy the address of this page: it is the link.";
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pointed >= 0) closePanel();
});
addEventListener("popstate", openAddress);

$("about").textContent = `A small language model (${parameterCount(data.parameters)} parameters)` +
  `${data.text ? ` trained on ${data.text}` : ""}. It writes one character at a time: it computes how likely each ` +
  `of its ${count(vocabulary.length)} characters is to come next, and throws dice.`;
$("facts").textContent = [
  `Model ${data.name}`, `${data.layers} layers of ${data.heads} heads`, `sees the last ${count(data.window)} characters`,
  data.step !== null && `${count(data.step)} training steps`,
  data.loss !== null && `validation loss ${data.loss.toFixed(3)} nats per character`,
].filter(Boolean).join(" · ");
$("ramp").append(...["100%", "50%", "10%", "1%", "≤0.1%"].map((label) => element("span", "", label)));

function parameterCount(n) {
  return n >= 1e5 ? `${(n / 1e6).toFixed(n >= 1e7 ? 0 : 1)} million` : count(n);
}

form.fill({ ...DEFAULTS, prompt: data.prompt }, DEFAULTS.length);
if (backend.problem) showProblem(backend.problem);
else openAddress();
