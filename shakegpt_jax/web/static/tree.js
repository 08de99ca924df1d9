// The versions of a text: each generation is a root, each branch a child of the text it left.

import { button, characterName, element } from "./common.js";
import { NAMES, SETTINGS } from "./settings.js";

/** @import {Found, Sampling, Token} from "./facts.js" */
/** @typedef {Sampling & {prompt: string}} Settings */
/** @typedef {[place: number, character: string]} Change a place in the new text, and what was chosen there */
/**
 * @typedef {object} Version of a text
 * @property {Settings} settings
 * @property {Change[]} changes
 * @property {Token[]} tokens the new text
 * @property {number} target characters that it should have
 * @property {number} promptLength in characters
 * @property {Version | null} parent
 * @property {Version[]} children
 * @property {(Found & {text: string}) | null} found copies of the training text in a text
 */

/**
 * Returns a version with the text that it starts from.
 * @param {Settings} settings @param {number} target
 * @param {{changes?: Change[], tokens?: Token[], parent?: Version | null}} rest
 * @returns {Version}
 */
export function makeVersion(settings, target, { changes = [], tokens = [], parent = null } = {}) {
  const promptLength = Array.from(settings.prompt).length;
  return { settings, promptLength, target, changes, tokens, parent, children: [], found: null };
}

/** @param {Version} version */
export function versionText({ settings, tokens }) {
  return settings.prompt + tokens.map((token) => token.character).join("");
}

/** Returns whether two texts were asked for in the same way. @param {Settings} a @param {Settings} b */
export function sameSettings(a, b) {
  return versionKey({ settings: a, changes: [] }) === versionKey({ settings: b, changes: [] });
}

/**
 * Sets how long a version should be, and drops what is beyond: it could be written again.
 * @param {Version} version @param {number} length
 */
export function setLength(version, length) {
  version.target = length;
  version.tokens.splice(length);
}

/** Returns what tells a version apart from others. @param {Pick<Version, "settings" | "changes">} version */
function versionKey({ settings, changes }) {
  return JSON.stringify([settings.prompt, NAMES.map((name) => settings[name]), changes]);
}

/**
 * Returns the version that a version becomes if a character of its new text is another.
 * @param {Version} version @param {number} place @param {string} character
 */
export function branchOff(version, place, character) {
  let parent = version;
  while (parent.parent && parent.changes[parent.changes.length - 1][0] >= place) parent = parent.parent;
  if (parent.tokens[place]?.character === character) return parent; // as it was before
  const changed = { character, logProbs: version.tokens[place].logProbs };
  return makeVersion(version.settings, Math.max(version.target, place + 1), {
    changes: [...parent.changes, [place, character]],
    tokens: [...version.tokens.slice(0, place), changed],
    parent,
  });
}

/**
 * Keeps versions and shows them as a list; calls select(version) for a click.
 * @param {HTMLElement} list @param {(version: Version) => void} select
 */
export function versionTree(list, select) {
  /** @type {Version[]} */
  const roots = [];
  /** @type {Map<string, Version>} */
  const byKey = new Map();

  /** @param {Version} version @param {Version | null} current @returns {HTMLElement} */
  function item(version, current) {
    const node = button("", "version", () => select(version));
    node.append(...(version.parent ? branchLabel(version) : rootLabel(version)));
    if (version === current) node.setAttribute("aria-current", "true");
    const children = version.children.map((child) => item(child, current));
    return element("li", "", "", node, ...(children.length ? [element("ul", "", "", ...children)] : []));
  }

  /** @param {Pick<Version, "settings" | "changes">} version */
  const find = (version) => byKey.get(versionKey(version));

  /** Adds a version, and those that it comes from, unless they are there. @param {Version} version */
  function add(version) {
    if (find(version)) return;
    if (version.parent) add(version.parent);
    byKey.set(versionKey(version), version);
    (version.parent?.children ?? roots).push(version);
  }

  return {
    find,
    add,
    /** @param {Version | null} current */
    show: (current) => list.replaceChildren(...roots.map((version) => item(version, current))),
  };
}

/** @param {string[]} characters */
const onOneLine = (characters) => characters.join("").replaceAll("\n", " ");

/** Returns the seed and the options of a version, and the start of its text. @param {Version} version */
function rootLabel(version) {
  const { settings } = version;
  const others = NAMES.filter((name) => name !== "seed" && settings[name] !== null)
    .map((name) => `${SETTINGS[name].title.toLowerCase()} ${settings[name]}`);
  const start = Array.from(versionText(version).slice(0, 80)).slice(0, 40);
  return [
    element("span", "", [`Seed ${settings.seed}`, ...others].join(", ")),
    element("span", "version-text", `${onOneLine(start)}…`),
  ];
}

/** Returns the surroundings of the last change of a version, with the change marked. @param {Version} version */
function branchLabel({ settings, changes, tokens }) {
  const [place, character] = changes[changes.length - 1];
  const written = tokens.map((token) => token.character);
  const before = [...settings.prompt, ...written.slice(0, place)];
  return [
    element("span", "version-text", `…${onOneLine(before.slice(-12))}`),
    element("b", "changed", characterName(character)),
    element("span", "version-text", `${onOneLine(written.slice(place + 1, place + 33))}…`),
  ];
}
