// The backend of a page with the model inside. It works in slices, between which the page handles
// events and draws.

import { makeModel } from "./model.js";
import { logSoftmax, sampleCharacter } from "./sampling.js";
import { foldIn, gumbel, randomKey } from "./threefry.js";
import { decodeWeights } from "./weights.js";

/** @import {Backend, Facts, ModelData, Token} from "./facts.js" */
/** @import {Cache} from "./model.js" */

const SLICE = 12; // milliseconds, below the time of a frame
const SLICE_WEIGHTS = 4e6; // multiplications in one step of a slice, approximately
const DAMAGED = "The model in this file is damaged. Copy the file again, or export it again with " +
  "shakegpt export --format html.";

/** Returns a backend that computes with the model in the facts. @param {Facts} facts @returns {Backend} */
export function makeBackend(facts) {
  const characters = Array.from(facts.vocabulary);
  const idOf = new Map(characters.map((character, id) => [character, id]));
  const allIds = Uint32Array.from(characters.keys());
  const loaded = loadModel(facts);
  if (!loaded) {
    const fail = () => Promise.reject(new Error(DAMAGED));
    return { problem: DAMAGED, generate: fail, score: fail, verbatim: fail };
  }
  const model = loaded, atOnce = Math.max(1, Math.floor(SLICE_WEIGHTS / facts.parameters));

  /** @param {string} text */
  function encode(text) {
    return Array.from(text, (character, i) => {
      const id = idOf.get(character);
      if (id === undefined) throw new Error(`The model does not know the character ${i + 1}, “${character}”.`);
      return id;
    });
  }

  /**
   * Returns the logits of the character text[end]; the cache may hold the context of the one before.
   * Calls pause() between steps.
   * @param {number[]} text @param {number} end @param {Cache} cache @param {() => Promise<void>} pause
   */
  async function nextLogits(text, end, cache, pause) {
    const context = contextLength(end, facts.window, facts.window_stride);
    if (context !== cache.length + 1) cache.length = 0;
    const wanted = text.slice(end - context + cache.length, end);
    let output = new Float32Array();
    for (let start = 0; start < wanted.length; start += atOnce) {
      await pause();
      output = model.extend(wanted.slice(start, start + atOnce), cache);
    }
    return model.head(output);
  }

  return {
    async generate({ prompt, maxTokens, seed, noiseOffset, ...sampling }, onTokens, signal) {
      const text = encode(prompt);
      if (!text.length) throw new Error("The prompt is empty: type at least one character.");
      const key = randomKey(seed);
      const cache = model.newCache();
      /** @type {Token[]} */
      let ready = [];
      const flush = () => {
        if (ready.length) onTokens(ready);
        ready = [];
      };
      const pause = makePause(signal, flush);
      for (let i = 0; i < maxTokens; i++) {
        const logits = await nextLogits(text, text.length, cache, pause);
        const noise = gumbel(foldIn(key, noiseOffset + i), characters.length);
        const id = sampleCharacter(logits, noise, sampling);
        text.push(id);
        ready.push({ character: characters[id], logProbs: { ids: allIds, values: logSoftmax(logits) } });
      }
      flush();
      return "length";
    },

    /** The context of a character is what it would be if it were generated. */
    async score(text, signal) {
      const all = encode(text);
      const cache = model.newCache();
      const pause = makePause(signal);
      /** @type {Awaited<ReturnType<Backend["score"]>>} */
      const scores = all.length ? [null] : [];
      for (let n = 1; n < all.length; n++) {
        scores.push({ ids: allIds, values: logSoftmax(await nextLogits(all, n, cache, pause)) });
      }
      return scores;
    },

    async verbatim() {
      return { problem: "the training text is not in this file." };
    },
  };
}

/** Returns the model once it has computed something, or null if it is damaged. @param {Facts} facts */
function loadModel(facts) {
  try {
    const data = /** @type {ModelData} */ (facts.model);
    const model = makeModel({ ...facts, ...data }, decodeWeights(data));
    const logits = model.head(model.extend([0], model.newCache()));
    return logits.length === Array.from(facts.vocabulary).length && !logits.some(Number.isNaN) ? model : null;
  } catch {
    return null;
  }
}

/**
 * Returns how many of the last characters of a text are context for the next one, as
 * `context_length` in shakegpt_jax/inference/sampler.py.
 * @param {number} length @param {number} window @param {number} stride
 */
function contextLength(length, window, stride) {
  if (length <= window) return length;
  return window - stride + 1 + ((length - window - 1) % stride);
}

/**
 * Returns a function to await between steps. Once a slice is over it calls `before` and gives way to
 * the events of the page; it rejects when the signal is aborted.
 * @param {AbortSignal | undefined} signal
 */
function makePause(signal, before = () => {}) {
  let end = performance.now() + SLICE;
  return async () => {
    if (performance.now() >= end) {
      before();
      await nextTask();
      end = performance.now() + SLICE;
    }
    signal?.throwIfAborted();
  };
}

/** Resolves after the events that wait now. setTimeout would wait for 4 ms each time. @returns {Promise<void>} */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
