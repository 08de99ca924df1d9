// The version that is shown: its text, its notes and its link.

import { chancesView } from "./chances.js";
import { $, count } from "./common.js";
import { writeLink } from "./link.js";
import { sameSettings, versionText, versionTree } from "./tree.js";
import { writeTo } from "./writer.js";

/** @import {controlsForm} from "./controls.js" */
/** @import {Backend} from "./facts.js" */
/** @import {Version} from "./tree.js" */
/** @import {Jobs} from "./writer.js" */

/**
 * @param {Backend} backend @param {Jobs} jobs
 * @param {ReturnType<typeof controlsForm>} form
 * @param {() => void} showText shows the card of the text
 */
export function versionView(backend, jobs, form, showText) {
  let current = /** @type {Version | null} */ (null);
  let search = /** @type {AbortController | null} */ (null); // for copies of the training text

  const chances = chancesView(backend, () => current, (version, index) => {
    const known = tree.find(version);
    if (known !== current) select(known ?? version, { at: index });
  });
  const tree = versionTree($("versions"), goTo);

  /**
   * Shows a version.
   * @param {Version} version @param {boolean} push whether Back returns to what is shown now
   * @param {number} at the character whose chances are shown, or -1
   */
  function show(version, push, at) {
    current = version;
    tree.add(version);
    tree.show(version);
    showText();
    for (const id of ["problem", "empty"]) $(id).hidden = true;
    for (const id of ["text", "continue", "versions-card"]) $(id).hidden = false;
    $("branch-note").hidden = !version.parent;
    chances.close();
    chances.showPrompt(version);
    chances.append(version.tokens, version);
    chances.view.flush();
    if (!sameSettings(form.read().settings, version.settings)) form.fill(version.settings);
    showLink(version.target, push);
    showNote();
    chances.colourPrompt();
    if (at >= 0) chances.showBranch(at);
    bringIntoView($("text-card"));
  }

  /**
   * Goes to a version, and writes what it lacks; shows it once there is something new to see.
   * @param {Version} version @param {{push?: boolean, at?: number}} options
   */
  async function select(version, { push = true, at = -1 } = {}) {
    const { target } = version;
    jobs.stop();
    const complete = version.tokens.length >= target;
    if (complete || tree.find(version) === version) show(version, push, at);
    if (complete) {
      settle(version, "Done");
      return;
    }
    const done = await jobs.run((signal) => writeTo(backend, version, target, (tokens) => {
      if (current === version) chances.append(tokens, version);
      else show(version, push, at);
    }, signal), () => {
      version.target = target;
      select(version, { push, at });
    });
    if (current !== version || jobs.busy) return; // another job took over
    version.target = version.tokens.length;
    settle(version, done ? "Done" : "Stopped");
  }

  /** Shows that a version has all of its text. @param {Version} version @param {string} how */
  function settle(version, how) {
    chances.view.flush();
    $("plain-text").textContent = versionText(version);
    if ($("problem").hidden) $("status").textContent = `${how}: ${count(version.tokens.length)} characters.`;
    showLink(version.tokens.length);
    tree.show(version);
    underlineCopies(version);
  }

  /** @param {Version} version */
  async function underlineCopies(version) {
    const text = versionText(version);
    search?.abort();
    search = new AbortController();
    if (version.found?.text !== text || version.found.problem) {
      try {
        version.found = { text, ...(await backend.verbatim(text, search.signal)) };
      } catch {
        return; // another text is searched
      }
    }
    if (current !== version || versionText(version) !== text) return;
    chances.view.underline(version.found.stretches ?? []);
    showNote();
  }

  /** @param {Version} version */
  function goTo(version) {
    select(version);
    if ($("text-card").getBoundingClientRect().top < 0) $("text-card").scrollIntoView();
  }

  /** @param {number} length */
  function showLink(length, push = false) {
    if (!current) setAddress("#", push);
    else setAddress(writeLink({ settings: current.settings, changes: current.changes, length, samples: false }), push);
  }

  /** Says above the text what its looks mean, and below it whether the form is about another text. */
  function showNote() {
    const notes = [];
    let settingsNote = "";
    if (current) {
      const { changes, found, settings } = current;
      notes.push("Grey: your prompt.");
      if (changes.length) notes.push("Framed: your choices.");
      if (found?.problem) notes.push(`Copies are not underlined (${found.problem.replace(/\.$/, "")}).`);
      else if (found?.stretches?.length) {
        notes.push(`Underlined: ${found.shortest} or more characters as in the training text; click to see where.`);
      }
      if (!sameSettings(form.read().settings, settings)) {
        settingsNote = "The settings above have changed: Generate uses them, Continue keeps those of this text.";
      }
    }
    $("text-note").textContent = notes.join(" ");
    $("settings-note").textContent = settingsNote;
  }

  return {
    chances,
    find: tree.find,
    select,
    goTo,
    showNote,
    /** Shows the link of the text in the address; Back returns to the one before. */
    pushLink: () => showLink(current?.tokens.length ?? 0, true),
    get current() { return current; },
    /** Shows nothing, as at first. */
    showEmpty() {
      jobs.stop();
      current = null;
      showText();
      chances.close();
      chances.view.clear();
      for (const id of ["text", "continue", "problem", "branch-note"]) $(id).hidden = true;
      $("empty").hidden = false;
      $("plain-text").textContent = $("status").textContent = "";
      tree.show(null);
      showNote();
    },
  };
}

/**
 * Puts a link into the address.
 * @param {string} link @param {boolean} push whether Back returns to the one that is there now
 */
export function setAddress(link, push) {
  if (push && link !== location.hash) history.pushState(null, "", link);
  else history.replaceState(null, "", link);
}

/** Scrolls to a card whose top is far down, as on a phone below the form. @param {HTMLElement} card */
export function bringIntoView(card) {
  if (card.getBoundingClientRect().top <= 0.6 * innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}
