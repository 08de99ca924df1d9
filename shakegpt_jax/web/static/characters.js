"use strict";
// What the pages share: elements, numbers, and characters as elements, coloured by a level from 0 to 1.

const LEAST_PROBABILITY = 1e-3; // from here on the colour is full

const $ = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

/** Returns an element with a class, a text and children. */
function element(tag, className = "", text = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

/** Returns a name of a character that can be seen: "␣" for a space, "U+200B" for a zero width one. */
function characterName(character) {
  const names = { " ": "␣", "\n": "↵", "\t": "⇥" };
  if (character in names) return names[character];
  if (/^[\p{C}\p{Z}]$/u.test(character)) {
    return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  }
  return /^\p{M}$/u.test(character) ? "◌" + character : character;
}

/** Returns what to call a character in a sentence. */
function spokenCharacter(character) {
  const names = { " ": "a space", "\n": "a newline", "\t": "a tab" };
  return names[character] ?? `“\u2068${characterName(character)}\u2069”`; // isolates a Hebrew letter
}

/** Returns the element of the character at an index of a text. */
function characterElement(character, index) {
  const hidden = /^[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]$/u.test(character) && character !== "\t";
  const node = element("span", "character", hidden ? characterName(character) : character);
  if (hidden && character !== "\n") node.classList.add("named");
  if (character === "\n") node.classList.add("newline");
  node.dataset.index = index;
  return node;
}

/** Colours a character by its loss in nats. */
function colourBySurprise(node, loss) {
  const level = Math.min(1, loss / -Math.log(LEAST_PROBABILITY));
  node.style.setProperty("--level", level.toFixed(3));
}

/** Returns the index of the character that an event is about, or null. */
function eventIndex(event) {
  const node = event.target.closest?.(".character");
  return node ? Number(node.dataset.index) : null;
}

/**
 * Calls act(index) when the pointer moves to a character, and not when the text moves below it, as it
 * does when the keyboard scrolls.
 */
function onCharacterPointed(container, act) {
  let place = "";
  const point = (event) => {
    const now = `${event.screenX},${event.screenY}`;
    if (now !== place && eventIndex(event) !== null) act(eventIndex(event));
    place = now;
  };
  container.addEventListener("pointerover", point);
  container.addEventListener("pointermove", point);
}

/**
 * Calls move(step) or moveLine(step) for the arrow keys, moveEnd(direction, everything) for Home and End,
 * alone or with Ctrl, movePage(direction) for Page Up and Page Down, and enter() for Enter.
 */
function onCharacterKeys(container, { move, moveLine, moveEnd, movePage, enter }) {
  container.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    const lines = { ArrowUp: -1, ArrowDown: 1 };
    const ends = { Home: -1, End: 1 };
    const pages = { PageUp: -1, PageDown: 1 };
    if ((event.ctrlKey && !(event.key in ends)) || event.altKey || event.metaKey) return;
    if (event.key in steps) move(steps[event.key]);
    else if (event.key in lines && moveLine) moveLine(lines[event.key]);
    else if (event.key in ends && moveEnd) moveEnd(ends[event.key], event.ctrlKey);
    else if (event.key in pages && movePage) movePage(pages[event.key]);
    else if (event.key === "Enter" && enter) enter();
    else return;
    event.preventDefault();
  });
}

/** Formats a probability as a percentage. */
function percent(probability) {
  const value = 100 * probability;
  if (value >= 10) return value.toFixed(0) + "%";
  if (value >= 1) return value.toFixed(1) + "%";
  return value >= 0.01 ? value.toFixed(2) + "%" : "<0.01%";
}
