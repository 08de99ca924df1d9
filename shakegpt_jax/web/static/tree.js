"use strict";
// The versions of a text: each generation is a root, each branch a child of the text it left.

/** @typedef {{ids: Uint32Array, values: Float32Array}} LogProbs of the ids in order; others are not known */

/**
 * A version of a text.
 * @typedef {object} Version
 * @property {{prompt, temperature, topK, topP, seed}} settings
 * @property {[number, string][]} changes places in the new text, and the characters chosen there
 * @property {{character: string, logProbs: LogProbs}[]} tokens the new text
 * @property {number} target characters that it should have
 * @property {number} promptLength in characters
 * @property {Version | null} parent
 * @property {object | null} found what the search for copies of the training text found
 */

/** Returns a version with the text that it starts from. */
function makeVersion(settings, target, { changes = [], tokens = [], parent = null } = {}) {
  const promptLength = Array.from(settings.prompt).length;
  return { settings, promptLength, target, changes, tokens, parent, children: [], found: null };
}

/** Returns whether two texts were asked for in the same way. */
function sameSettings(a, b) {
  return versionKey({ settings: a, changes: [] }) === versionKey({ settings: b, changes: [] });
}

/** Sets how long a version should be, and drops what is beyond: it could be written again. */
function setLength(version, length) {
  version.target = length;
  version.tokens.splice(length);
}

/** Returns what tells a version apart from others. */
function versionKey({ settings: { prompt, temperature, topK, topP, seed }, changes }) {
  return JSON.stringify([prompt, temperature, topK, topP, seed, changes]);
}

/** Returns the version that a version becomes if a character of its new text is another. */
function branchOff(version, place, character) {
  let parent = version;
  while (parent.parent && parent.changes.at(-1)[0] >= place) parent = parent.parent;
  if (parent.tokens[place]?.character === character) return parent; // as it was before
  const changed = { character, logProbs: version.tokens[place].logProbs };
  return makeVersion(version.settings, Math.max(version.target, place + 1), {
    changes: [...parent.changes, [place, character]],
    tokens: [...version.tokens.slice(0, place), changed],
    parent,
  });
}

/** Keeps versions and shows them as a list; calls select(version) for a click. */
function versionTree(list, select) {
  const roots = [], byKey = new Map(), byButton = new WeakMap();

  function item(version, current) {
    const button = element("button", "version", "",
      ...(version.parent ? branchLabel(version) : rootLabel(version)));
    button.type = "button";
    if (version === current) button.setAttribute("aria-current", "true");
    byButton.set(button, version);
    const children = version.children.map((child) => item(child, current));
    return element("li", "", "", button, ...(children.length ? [element("ul", "", "", ...children)] : []));
  }

  list.addEventListener("click", (event) => {
    const version = byButton.get(event.target.closest("button"));
    if (version) select(version);
  });

  const find = (version) => byKey.get(versionKey(version));

  return {
    find,
    /** Adds a version, and those that it comes from, unless they are there. */
    add(version) {
      if (find(version)) return;
      if (version.parent) this.add(version.parent);
      byKey.set(versionKey(version), version);
      (version.parent?.children ?? roots).push(version);
    },
    show(current) {
      list.replaceChildren(...roots.map((version) => item(version, current)));
    },
  };
}

/** Returns the characters of a stretch of a text on one line. */
function snippet(tokens, start, end) {
  return tokens.slice(Math.max(0, start), end).map(({ character }) => (character === "\n" ? " " : character)).join("");
}

/** Returns the characters of a prompt in the form of tokens. */
const promptTokens = (prompt) => Array.from(prompt, (character) => ({ character }));

/** Returns the seed and the options of a version, and the start of its text. */
function rootLabel({ settings, tokens }) {
  const { prompt, temperature, topK, topP, seed } = settings;
  const name = [`Seed ${seed}`, `temperature ${temperature}`, topK && `top-k ${topK}`, topP && `top-p ${topP}`];
  return [
    element("span", "", name.filter(Boolean).join(", ")),
    element("span", "version-text", snippet([...promptTokens(prompt), ...tokens.slice(0, 40)], 0, 40) + "…"),
  ];
}

/** Returns the surroundings of the last change of a version, with the change marked. */
function branchLabel({ settings, changes, tokens }) {
  const [place, character] = changes.at(-1);
  const before = [...promptTokens(settings.prompt), ...tokens.slice(0, place)];
  return [
    element("span", "version-text", "…" + snippet(before, before.length - 12)),
    element("b", "changed", characterName(character)),
    element("span", "version-text", snippet(tokens, place + 1, place + 33) + "…"),
  ];
}
