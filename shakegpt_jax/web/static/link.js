// The state of a text in the fragment of the address: everything that it takes to write it again.

import { codePoint } from "./common.js";
import { facts, limits } from "./facts.js";
import { N_SAMPLES } from "./samples.js";
import { lengthReader, NAMES, reader, SETTINGS } from "./settings.js";

/** @import {Change, Settings} from "./tree.js" */
/** @typedef {{settings: Settings, length: number, changes: Change[], samples: boolean}} Link samples: whether it is the texts of this seed and those after it */

/**
 * Returns a name of the model and a digest of what tells it apart from others of that name.
 * @param {string | undefined} dtype of the weights in the page
 */
export function modelMark(dtype) {
  const { name, vocabulary, parameters, layers, window, step, loss } = facts;
  /** @type {unknown[]} */
  const known = [vocabulary, parameters, layers, window, step, loss];
  if (dtype === "float16") known.push(dtype); // rounded: texts may differ
  let digest = 0x811c9dc5; // FNV-1a
  for (const character of JSON.stringify(known)) {
    digest = Math.imul(digest ^ codePoint(character), 0x01000193) >>> 0;
  }
  return `${name}.${digest.toString(16).padStart(8, "0")}`;
}

/** The mark of the model of this page. */
export const ownMark = modelMark(facts.model?.dtype);

/** Returns what a link that has another mark than this page was made with, in words. @param {string} mark */
export function describeMark(mark) {
  if (mark === modelMark("float16")) return `other (rounded) weights of ${facts.name}`;
  if (mark === modelMark("float32")) return `other (unrounded) weights of ${facts.name}`;
  return `another model (${mark.slice(0, -9).slice(0, 40)})`;
}

/** @param {Link} link */
export function writeLink({ settings, length, changes, samples }) {
  const parameters = new URLSearchParams({ prompt: settings.prompt });
  for (const name of NAMES) if (settings[name] !== null) parameters.set(name, String(settings[name]));
  parameters.set("length", String(length));
  for (const [place, character] of changes) parameters.append("change", `${place}.${character}`);
  if (samples) parameters.set("samples", String(N_SAMPLES));
  parameters.set("model", ownMark); // last, with a fixed end: a link that was cut off lacks it
  return `#${parameters}`;
}

/**
 * Returns the state and the mark of the model in a fragment; throws an Error if it is damaged.
 * @param {string} fragment
 * @returns {Link & {mark: string}}
 */
export function readLink(fragment) {
  const parameters = new URLSearchParams(fragment.replace(/^#/, ""));
  const known = ["prompt", ...NAMES, "length", "change", "samples", "model"];
  for (const name of parameters.keys()) {
    if (!known.includes(name)) throw new Error(`${name.slice(0, 20)} is not known`);
  }
  /** @param {string} name */
  const only = (name) => {
    const values = parameters.getAll(name);
    if (values.length !== 1) throw new Error(`${name} is ${values.length ? "there twice" : "missing"}`);
    return values[0];
  };
  /** @param {string} name @param {(text: string, name: string) => number} read */
  const required = (name, read) => read(only(name), name);
  /** @param {string} name @param {(text: string, name: string) => number} read */
  const optional = (name, read) => (parameters.has(name) ? required(name, read) : null);
  const mark = only("model");
  if (!/\.[0-9a-f]{8}$/.test(mark)) throw new Error("the link is cut off");
  const sampling = NAMES.map((name) =>
    [name, (SETTINGS[name].optional ? optional : required)(name, SETTINGS[name].read)]);
  const settings = /** @type {Settings} */ ({ prompt: only("prompt"), ...Object.fromEntries(sampling) });
  const length = required("length", lengthReader(limits.text));
  const changes = parameters.getAll("change").map(readChange);
  const samples = optional("samples", readSamples) !== null;
  if (!settings.prompt) throw new Error("prompt is empty");
  if (samples && changes.length) throw new Error("samples have no changes");
  changes.forEach(([place], i) => {
    if (place >= length || (i && place <= changes[i - 1][0])) throw new Error("its changes are out of order");
  });
  return { settings, length, changes, samples, mark };
}

const readSamples = reader(N_SAMPLES, N_SAMPLES, true, String(N_SAMPLES));

/** @param {string} text @returns {Change} */
function readChange(text) {
  const [, place, character] = text.match(/^(\d{1,9})\.(.)$/su) ?? [];
  if (character === undefined) throw new Error("a change cannot be read");
  return [Number(place), character];
}
