"use strict";
// The distribution of one character as bars.

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
  entries.forEach(({ character, probability }, i) => {
    const item = list.children[i];
    const name = characterName(character);
    item.className = character === actual ? "actual" : "";
    item.title = `${name} ${percent(probability)}`;
    item.setAttribute("aria-label", `${spokenCharacter(character)} ${percent(probability)}`);
    item.dataset.probability = probability;
    item.dataset.character = character;
    item.querySelector(".bar").style.height = `${(100 * probability) / largest}%`;
    item.querySelector(".label").textContent = name.startsWith("U+") ? "·" : name;
  });
}
