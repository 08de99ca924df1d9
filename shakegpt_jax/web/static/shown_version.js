"use strict";
// The version that is shown: its text, its notes and its link. It sets `current` and `search`.

let current = null; // the version, or null
let search = null; // aborts the search for copies of the training text

/** Returns the log-probability of a character; -Infinity: it is not among those that are known. */
const logProbOf = ({ character, logProbs }) => logProbs.values[logProbs.ids.indexOf(ids.get(character))] ?? -Infinity;

/**
 * Shows a version.
 * @param {Version} version
 * @param {{push: boolean, at: number}} options whether Back returns to what is shown now; the
 *   character whose chances are shown, or -1
 */
function show(version, { push, at = -1 }) {
  current = version;
  tree.add(version);
  tree.show(version);
  showSamples(false);
  for (const id of ["problem", "empty"]) $(id).hidden = true;
  for (const id of ["text", "continue", "versions-card"]) $(id).hidden = false;
  $("branch-note").hidden = !version.parent;
  closeChances();
  view.clear();
  view.append(Array.from(version.settings.prompt, (character) => ({ character, className: "prompt" })));
  addTokens(version.tokens, version);
  view.flush();
  if (!sameSettings(form.read().settings, version.settings)) form.fill(version.settings);
  showLink(version.target, push);
  showNote();
  colourPrompt();
  if (at >= 0) {
    showChances(at, { hold: !SHEET.matches });
    if (SHEET.matches) closeChances(); // there, the text that is new matters more
  }
  bringIntoView($("text-card"));
}

/** Adds tokens, which the version has already, to its text. */
function addTokens(tokens, version) {
  const changed = new Set(version.changes.map(([place]) => place));
  const start = view.length - version.promptLength;
  view.append(tokens.map((token, i) => ({
    character: token.character,
    logProb: logProbOf(token),
    className: changed.has(start + i) ? "changed" : "",
  })));
}

/** Shows nothing, as at first. */
function showEmpty() {
  jobs.stop();
  current = null;
  showSamples(false);
  closeChances();
  view.clear();
  for (const id of ["text", "continue", "problem", "branch-note"]) $(id).hidden = true;
  $("empty").hidden = false;
  $("plain-text").textContent = $("status").textContent = "";
  tree.show(null);
  showNote();
}

/** Goes to a version, and writes what it lacks; shows it once there is something new to see. */
async function select(version, { push = true, at = -1 } = {}) {
  const { target } = version;
  jobs.stop();
  const complete = version.tokens.length >= target;
  if (complete || tree.find(version) === version) show(version, { push, at });
  if (complete) {
    settle("Done");
    return;
  }
  const again = () => {
    version.target = target;
    select(version, { push, at });
  };
  const done = await jobs.run((signal) => writeTo(backend, version, target, (tokens) => {
    if (current === version) addTokens(tokens, version);
    else show(version, { push, at });
  }, signal), again);
  if (current !== version || jobs.busy) return; // another job took over
  version.target = version.tokens.length;
  settle(done ? "Done" : "Stopped");
}

/** Shows that the version has all of its text. */
function settle(how) {
  view.flush();
  $("plain-text").textContent = versionText(current);
  if ($("problem").hidden) $("status").textContent = `${how}: ${count(current.tokens.length)} characters.`;
  showLink(current.tokens.length);
  tree.show(current);
  showBusy(false);
  underlineCopies(current);
}

async function underlineCopies(version) {
  const text = versionText(version);
  search?.abort();
  search = new AbortController();
  if (version.found?.text !== text || version.found.problem) {
    try {
      version.found = { text, stretches: [], ...(await backend.verbatim(text, search.signal)) };
    } catch {
      return; // another text is searched
    }
  }
  if (current !== version || versionText(version) !== text) return;
  view.underline(version.found.stretches);
  showNote();
}

function showLink(length, push = false) {
  setAddress(writeLink({ ...current.settings, changes: current.changes, length }, mark), push);
}

/** Puts a link into the address; push: whether Back returns to the one that is there now. */
function setAddress(link, push) {
  if (push && link !== location.hash) history.pushState(null, "", link);
  else history.replaceState(null, "", link);
}

/** Says above the text what its looks mean, and below it whether the form is about another text. */
function showNote() {
  const notes = [];
  let settingsNote = "";
  if (current) {
    const { changes, found, settings } = current;
    notes.push("Grey: your prompt.");
    if (changes.length) notes.push("Framed: what you chose.");
    if (found?.problem) notes.push(`Copies are not underlined (${found.problem.replace(/\.$/, "")}).`);
    else if (found?.stretches.length) {
      notes.push(`Underlined: ${found.shortest} or more characters as in the training text; click to see where.`);
    }
    if (!sameSettings(form.read().settings, settings)) {
      settingsNote = "The settings above have changed: Generate uses them, Continue keeps those of this text.";
    }
  }
  $("text-note").textContent = notes.join(" ");
  $("settings-note").textContent = settingsNote;
}

/** Scrolls to a card whose top is far down, as on a phone below the form. */
function bringIntoView(card) {
  if (card.getBoundingClientRect().top <= 0.6 * innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}
