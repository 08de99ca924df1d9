// The distribution of one character as bars and in words.

import { characterName, element, percent, spokenCharacter } from "./common.js";

/** @import {Entry} from "./common.js" */

/**
 * Returns entries by probability, and the index of a character among them, or -1.
 * @param {Entry[]} entries @param {string} character
 */
export function rankEntries(entries, character) {
  const ordered = [...entries].sort((a, b) => b.probability - a.probability);
  return { ordered, rank: ordered.findIndex((entry) => entry.character === character) };
}

/** @param {Entry} entry */
export const spokenEntry = ({ character, probability }) => `${spokenCharacter(character)} ${percent(probability)}`;

/**
 * Returns the longest of the copied stretches that hold the character at an index, or undefined.
 * @template {{start: number, end: number}} T
 * @param {T[]} stretches @param {number} index
 */
export function longestStretch(stretches, index) {
  return stretches.filter(({ start, end }) => start <= index && index < end)
    .sort((a, b) => b.end - b.start - (a.end - a.start))[0];
}

/**
 * Shows a bar for each character, in the order of the entries.
 * @param {HTMLElement} list an empty or earlier list of class `distribution`
 * @param {Entry[]} entries
 * @param {string} actual the character that came
 */
export function showDistribution(list, entries, actual) {
  while (list.children.length > entries.length) list.lastChild?.remove();
  while (list.children.length < entries.length) {
    const track = element("span", "track", "", element("span", "bar"));
    list.append(element("li", "", "", track, element("span", "label")));
  }
  const largest = Math.max(...entries.map((entry) => entry.probability));
  entries.forEach((entry, i) => {
    const { character, probability } = entry;
    const item = /** @type {HTMLElement} */ (list.children[i]), name = characterName(character);
    item.className = character === actual ? "actual" : "";
    item.title = `${name} ${percent(probability)}`;
    item.setAttribute("aria-label", spokenEntry(entry));
    item.dataset.probability = String(probability);
    item.dataset.character = character;
    const [track, label] = item.children;
    /** @type {HTMLElement} */ (track.firstChild).style.height = `${(100 * probability) / largest}%`;
    label.textContent = name.startsWith("U+") ? "·" : name;
  });
}
