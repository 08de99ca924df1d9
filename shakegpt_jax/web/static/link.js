"use strict";
// The state of a text in the fragment of the address: everything that it takes to write it again.

/** Returns a name of the model and a digest of what tells it apart from others of that name. */
function modelMark({ name, vocabulary, parameters, layers, window, step, loss, model }) {
  let digest = 0x811c9dc5; // FNV-1a
  const facts = [vocabulary, parameters, layers, window, step, loss];
  if (model && model.dtype !== "float32") facts.push(model.dtype); // rounded: texts may differ
  for (const character of JSON.stringify(facts)) {
    digest = Math.imul(digest ^ character.codePointAt(0), 0x01000193) >>> 0;
  }
  return `${name}.${digest.toString(16).padStart(8, "0")}`;
}

/** Returns what a link that has another mark than this page was made with, in words. */
function describeMark(mark) {
  const sibling = ["float16", "float32"].find((dtype) => mark === modelMark({ ...data, model: { dtype } }));
  if (sibling) return `other (${sibling === "float16" ? "rounded" : "unrounded"}) weights of ${data.name}`;
  return `another model (${mark.slice(0, -9).slice(0, 40)})`;
}

/**
 * Returns the fragment of a text.
 * @param {{prompt, temperature, topK, topP, seed, length, changes: [number, string][], samples: boolean}} state
 *   changes are the places in the new text where another character was chosen, and that character;
 *   samples: whether it is the texts of this seed and those after it
 */
function writeLink(state, mark) {
  const parameters = new URLSearchParams({
    prompt: state.prompt, temperature: state.temperature, seed: state.seed, length: state.length,
  });
  if (state.topK !== null) parameters.set("top_k", state.topK);
  if (state.topP !== null) parameters.set("top_p", state.topP);
  for (const [place, character] of state.changes) parameters.append("change", `${place}.${character}`);
  if (state.samples) parameters.set("samples", N_SAMPLES);
  parameters.set("model", mark); // last, with a fixed end: a link that was cut off lacks it
  return "#" + parameters;
}

/** Returns the state and the mark of the model in a fragment; throws an Error if it is damaged. */
function readLink(fragment) {
  const parameters = new URLSearchParams(fragment.replace(/^#/, ""));
  const known = ["prompt", "temperature", "top_k", "top_p", "seed", "length", "change", "samples", "model"];
  for (const name of parameters.keys()) {
    if (!known.includes(name)) throw new Error(`${name.slice(0, 20)} is not known`);
  }
  const optional = (name, read) => (parameters.has(name) ? read(only(name), name) : null);
  const only = (name) => {
    const values = parameters.getAll(name);
    if (values.length !== 1) throw new Error(`${name} is ${values.length ? "there twice" : "missing"}`);
    return values[0];
  };
  const required = (name, read) => read(only(name), name);
  const mark = only("model");
  if (!/\.[0-9a-f]{8}$/.test(mark)) throw new Error("its end is missing");
  const state = {
    prompt: only("prompt"),
    temperature: required("temperature", readTemperature),
    topK: optional("top_k", readTopK),
    topP: optional("top_p", readTopP),
    seed: required("seed", readSeed),
    length: required("length", readLength),
    changes: parameters.getAll("change").map(readChange),
    samples: optional("samples", readSamples) !== null,
  };
  if (!state.prompt) throw new Error("prompt is empty");
  if (state.samples && state.changes.length) throw new Error("samples have no changes");
  state.changes.forEach(([place], i) => {
    if (place >= state.length || (i && place <= state.changes[i - 1][0])) {
      throw new Error("its changes are out of order");
    }
  });
  return { state, mark };
}

function readNumber(text, name, least, most, whole, right) {
  const plain = whole ? text.trim() : text.trim().replace(",", "."); // some write 0,8
  const value = Number(plain);
  const isNumber = /^[0-9.]+(e[+-]?[0-9]+)?$/i.test(plain) && Number.isFinite(value);
  if (!isNumber || value < least || value > most || (whole && !Number.isInteger(value))) {
    throw new Error(`${name} must be ${right}`);
  }
  return value;
}

const readTemperature = (text, name) =>
  readNumber(text, name, 0, limits.temperature, false, `a number from 0 to ${count(limits.temperature)}`);
const readTopK = (text, name) => readNumber(text, name, 1, limits.top_k, true, "a whole number, 1 or more");
const readTopP = (text, name) => readNumber(text, name, 1e-30, 1, false, "above 0, up to 1");
const readSeed = (text, name) =>
  readNumber(text, name, 0, limits.seed, true, `a whole number from 0 to ${limits.seed}`);
const readLength = (text, name, most = limits.text) =>
  readNumber(text, name, 1, most, true, `a whole number from 1 to ${count(most)}`);

const readSamples = (text, name) => readNumber(text, name, N_SAMPLES, N_SAMPLES, true, String(N_SAMPLES));

function readChange(text) {
  const [, place, character] = text.match(/^(\d{1,9})\.(.)$/su) ?? [];
  if (character === undefined) throw new Error("a change is not readable");
  return [Number(place), character];
}
