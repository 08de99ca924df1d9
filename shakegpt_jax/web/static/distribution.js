"use strict";
// The distribution of one character, as entries {character, probability}, as bars and in words.

/** Returns entries by probability, and the index of a character among them, or -1. */
function rankEntries(entries, character) {
  const ordered = [...entries].sort((a, b) => b.probability - a.probability);
  return { ordered, rank: ordered.findIndex((entry) => entry.character === character) };
}

const spokenEntry = ({ character, probability }) => `${spokenCharacter(character)} ${percent(probability)}`;

/** Returns the longest of the copied stretches that hold the character at an index, or undefined. */
function longestStretch(stretches, index) {
  return stretches.filter(({ start, end }) => start <= index && index < end)
    .sort((a, b) => b.end - b.start - (a.end - a.start))[0];
}

/**
 * Shows a bar for each character.
 * @param {HTMLElement} list an empty or earlier list of class `distribution`
 * @param {{character: string, probability: number}[]} entries in the order to show
 * @param {string} actual the character that came
 */
function showDistribution(list, entries, actual) {
  while (list.children.length > entries.length) list.lastChild.remove();
  while (list.children.length < entries.length) {
    const track = element("span", "track", "", element("span", "bar"));
    list.append(element("li", "", "", track, element("span", "label")));
  }
  const largest = Math.max(...entries.map((entry) => entry.probability));
  entries.forEach((entry, i) => {
    const { character, probability } = entry;
    const item = list.children[i];
    const name = characterName(character);
    item.className = character === actual ? "actual" : "";
    item.title = `${name} ${percent(probability)}`;
    item.setAttribute("aria-label", spokenEntry(entry));
    item.dataset.probability = probability;
    item.dataset.character = character;
    item.querySelector(".bar").style.height = `${(100 * probability) / largest}%`;
    item.querySelector(".label").textContent = name.startsWith("U+") ? "·" : name;
  });
}
