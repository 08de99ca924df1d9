// The form: what to write, and what is wrong with it.

import { $, input, spokenCharacter } from "./common.js";
import { ids, limits } from "./facts.js";
import { lengthReader, NAMES, SETTINGS } from "./settings.js";

/** @import {Setting} from "./settings.js" */
/** @import {Settings} from "./tree.js" */

/**
 * Returns a sentence about the characters of a text that the model does not know; empty if it knows all.
 * @param {string} text
 */
export function nameUnknown(text) {
  const unknown = [...new Set(text)].filter((character) => !ids.has(character));
  if (!unknown.length) return "";
  const shown = unknown.slice(0, 8).map(spokenCharacter).join(", ");
  const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : "";
  const reason = unknown.length > 1 ? "they are not" : "it is not";
  return `The model does not know ${shown}${more}: ${reason} in its training text.`;
}

/**
 * Reads and fills the form; calls change(valid) when something was typed.
 * @param {(valid: boolean) => void} change
 */
export function controlsForm(change) {
  /** @param {string} id @param {Setting} setting @param {string[]} problems */
  function readField(id, { title, read, optional = false }, problems) {
    const text = input(id).value.trim();
    try {
      input(id).removeAttribute("aria-invalid");
      return optional && !text ? null : read(text, title);
    } catch (error) {
      input(id).setAttribute("aria-invalid", "true");
      problems.push(`${/** @type {Error} */ (error).message}${optional ? ", or empty" : ""}.`);
      return null;
    }
  }

  /** Returns the settings, the length, and what is wrong with the prompt and with the rest. */
  function read() {
    /** @type {string[]} */
    const problems = [];
    const prompt = input("prompt").value, unknown = nameUnknown(prompt);
    input("prompt").setAttribute("aria-invalid", String(Boolean(unknown)));
    const sampling = NAMES.map((name) => [name, readField(name, SETTINGS[name], problems)]);
    const settings = { prompt, ...Object.fromEntries(sampling) };
    return {
      settings: /** @type {Settings} */ (settings), // null where there is a problem
      length: readField("length", { title: "Length", read: lengthReader(limits.length) }, problems),
      promptProblem: prompt ? unknown : "Type a prompt: the model needs at least one character to continue.",
      optionsProblem: problems.join(" "),
    };
  }

  function showProblems() {
    const { promptProblem, optionsProblem } = read();
    for (const [id, text] of [["prompt-problem", promptProblem], ["options-problem", optionsProblem]]) {
      if ($(id).textContent !== text) $(id).textContent = text; // what is the same is not read again
    }
    change(!promptProblem && !optionsProblem);
  }

  for (const name of ["input", "change"]) $("controls").addEventListener(name, showProblems);
  $("dice").addEventListener("click", () => {
    input("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    showProblems();
  });
  $("prompt").addEventListener("keydown", (event) => {
    const { key, ctrlKey, metaKey } = event;
    if (key === "Enter" && (ctrlKey || metaKey)) /** @type {HTMLFormElement} */ ($("controls")).requestSubmit();
  });

  return {
    read,
    /** @param {Partial<Settings>} settings empty where there is none @param {number | null} length null: as it is */
    fill(settings, length = null) {
      for (const name of /** @type {const} */ (["prompt", ...NAMES])) input(name).value = String(settings[name] ?? "");
      if (length !== null) input("length").value = String(length);
      showProblems();
    },
  };
}
