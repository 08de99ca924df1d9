// The text, the character of it whose chances are shown, and the branches that start there.

import { $, input, spokenCharacter } from "./common.js";
import { longestStretch } from "./distribution.js";
import { ids } from "./facts.js";
import { distributionPanel } from "./panel.js";
import { surprise, textView } from "./text_view.js";
import { branchOff, makeVersion, versionText } from "./tree.js";

/** @import {Backend, LogProbs, Token} from "./facts.js" */
/** @import {Version} from "./tree.js" */

// The chances are at the bottom of the screen; as in page.css.
const SHEET = matchMedia("(max-width: 60rem) and (orientation: portrait), (max-width: 40rem)");

/** @param {Token} token */
const levelOf = ({ character, logProbs }) =>
  surprise(logProbs.values[logProbs.ids.indexOf(ids.get(character) ?? -1)] ?? -Infinity); // else it is not among those that are known

/**
 * @param {Backend} backend
 * @param {() => Version | null} getVersion the one that is shown
 * @param {(version: Version, index: number) => void} goTo shows a branch and what it changed
 */
export function chancesView(backend, getVersion, goTo) {
  let pointed = -1, held = false; // the character; whether it stays when the pointer moves on
  /** @type {Map<string, {scores?: (LogProbs | null)[], problem?: string}>} */
  const promptScores = new Map(); // by prompt; neither of the two while it is scored

  const panel = distributionPanel((character) => branch(pointed, character), close);
  const view = textView($("text"), {
    point(index, byMouse = false) {
      if (!byMouse || !(held || SHEET.matches)) show(index, held);
    },
    choose(index) {
      const release = held && pointed === index;
      if (release && SHEET.matches) close();
      else show(index, !release);
      revealCopied();
      view.reveal(index); // above the sheet
    },
    enter() {
      if (pointed < 0) return;
      show(pointed, true);
      panel.focus();
    },
    first: () => getVersion()?.promptLength ?? 0,
  });

  /** @param {number} index @param {boolean} hold */
  function show(index, hold) {
    const version = getVersion();
    if (!version) return;
    [pointed, held] = [index, hold];
    view.mark(index);
    const { settings, tokens, changes, found, promptLength } = version;
    const text = Array.from(versionText(version)), place = index - promptLength;
    if (place < 0) scorePrompt(version);
    const { scores, problem = "" } = promptScores.get(settings.prompt) ?? {};
    const logProbs = place < 0 ? scores?.[index] ?? null : tokens[place].logProbs;
    const copy = longestStretch(found?.stretches ?? [], index);
    panel.show({
      title: `${place < 0 ? "Prompt: " : ""}${spokenCharacter(text[index])}`,
      character: text[index],
      logProbs,
      copy: copy && { ...copy, text: text.slice(copy.start, copy.end) },
      note: !index ? "The first character is not predicted."
        : !logProbs ? problem
        : (changes.some(([each]) => each === place) ? "You chose this one. " : "") +
          "Choose another one to see what the same dice would have written after it." +
          (held ? "" : " Click the character to hold it here."),
    });
  }

  /** Scrolls to the place in the training text, where that leaves the text in sight. */
  function revealCopied() {
    if (held && !SHEET.matches) panel.revealCopied();
  }

  function close() {
    const inside = $("panel").contains(document.activeElement);
    [pointed, held] = [-1, false];
    view.mark(-1);
    panel.clear();
    for (const [prompt, { problem }] of promptScores) if (problem) promptScores.delete(prompt); // asked for anew
    if (inside) view.focus();
  }

  /** @param {number} index @param {string} character */
  function branch(index, character) {
    const version = getVersion();
    if (!version || index < 0) return;
    const { settings, promptLength, target, tokens } = version, place = index - promptLength;
    if (place >= 0) {
      if (tokens[place].character !== character) goTo(branchOff(version, place, character), index);
      return;
    }
    const prompt = Array.from(settings.prompt);
    prompt[index] = character; // the same dice write after it
    goTo(makeVersion({ ...settings, prompt: prompt.join("") }, target), index);
  }

  /**
   * Computes the chances of the characters of a prompt, once per prompt unless that fails.
   * @param {Version} version
   */
  async function scorePrompt({ settings: { prompt } }) {
    if (promptScores.has(prompt)) return;
    promptScores.set(prompt, {});
    promptScores.set(prompt, await backend.score(prompt)
      .then((scores) => ({ scores }), ({ message }) => ({ problem: `Its chance is not known. ${message}` })));
    const version = getVersion();
    if (version?.settings.prompt !== prompt) return;
    colourPrompt();
    if (pointed < 0 || pointed >= version.promptLength) return;
    show(pointed, held);
    revealCopied();
  }

  function colourPrompt() {
    const version = getVersion();
    if (!input("colour").checked || !version) return;
    scorePrompt(version);
    const { scores } = promptScores.get(version.settings.prompt) ?? {};
    Array.from(version.settings.prompt).forEach((character, i) => {
      const logProbs = scores?.[i];
      if (logProbs) view.colour(i, levelOf({ character, logProbs }));
    });
  }

  return {
    view,
    close,
    colourPrompt,
    get open() { return pointed >= 0; },
    /** Shows what is new in a text; on a phone, no chances, which would hide it. @param {number} index */
    showBranch(index) {
      show(index, !SHEET.matches);
      if (SHEET.matches) close();
    },
    /** @param {Version} version */
    showPrompt({ settings }) {
      view.clear();
      view.append(Array.from(settings.prompt, (character) => ({ character, className: "prompt" })));
    },
    /** Adds tokens, which the version has already, to its text. @param {Token[]} tokens @param {Version} version */
    append(tokens, version) {
      const changed = new Set(version.changes.map(([place]) => place));
      const start = view.length - version.promptLength;
      view.append(tokens.map((token, i) => ({
        character: token.character,
        level: levelOf(token),
        className: changed.has(start + i) ? "changed" : "",
      })));
    },
  };
}
