// What the pages share: elements, numbers and characters as text, arrays in base64.

/** @typedef {{character: string, probability: number}} Entry one character of a distribution */
/** @typedef {{start: number, end: number, place: number}} Stretch of a text, and its place in the training text */

/** @param {string} id */
export const $ = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} id */
export const input = (id) => /** @type {HTMLInputElement} */ ($(id));

/** @param {number} number */
export const count = (number) => number.toLocaleString("en");

/**
 * Returns an element with a class, a text and children.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {(Node | string)[]} children
 */
export function element(tag, className = "", text = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

/** @param {string} text @param {(() => void) | null} act */
export function button(text, className = "", act = null) {
  const node = element("button", className, text);
  node.type = "button";
  if (act) node.addEventListener("click", act);
  return node;
}

/** @type {Record<string, string>} */
const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };
/** @type {Record<string, string>} */
const SPOKEN = { " ": "a space", "\n": "a newline", "\t": "a tab" };

/**
 * Returns a visible name of a character: "␣" for a space, "U+200B" for a zero width one.
 * @param {string} character
 */
export function characterName(character) {
  if (character in SIGNS) return SIGNS[character];
  if (/^[\p{C}\p{Z}]$/u.test(character)) {
    return `U+${codePoint(character).toString(16).toUpperCase().padStart(4, "0")}`;
  }
  return /^\p{M}$/u.test(character) ? `◌${character}` : character;
}

/** @param {string} character */
export const codePoint = (character) => /** @type {number} */ (character.codePointAt(0));

/** Returns what to call a character in a sentence. @param {string} character */
export function spokenCharacter(character) {
  return SPOKEN[character] ?? `“\u2068${characterName(character)}\u2069”`; // isolates a Hebrew letter
}

/** Formats a probability as a percentage. @param {number} probability */
export function percent(probability) {
  const value = 100 * probability;
  if (value >= 10) return `${value.toFixed(0)}%`;
  if (value >= 1) return `${value.toFixed(1)}%`;
  return value >= 0.01 ? `${value.toFixed(2)}%` : "<0.01%";
}

/**
 * Returns the numbers of a little-endian array in base64.
 * @template T
 * @param {string} text
 * @param {new (buffer: ArrayBuffer) => T} Type
 */
export function decodeArray(text, Type) {
  return new Type(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
}
