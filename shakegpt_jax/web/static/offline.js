"use strict";
// The backend of a page with the model inside. It works in slices, between which the page handles
// events and draws.

const SLICE = 12; // milliseconds, below the time of a frame
const SLICE_WEIGHTS = 4e6; // multiplications in one step of a slice, about

/**
 * Returns what the page generates, scores and searches with: the model in its own data.
 * @param {object} data facts about the model, and in `model` what it computes with
 */
function makeBackend(data) {
  const vocabulary = Array.from(data.vocabulary);
  const ids = new Map(vocabulary.map((character, id) => [character, id]));
  const { model, problem } = loadModel(data);
  const allIds = Uint32Array.from(vocabulary.keys());
  const atOnce = Math.max(1, Math.floor(SLICE_WEIGHTS / data.parameters));

  function encode(text) {
    if (problem) throw new Error(problem);
    return Array.from(text, (character, i) => {
      if (ids.has(character)) return ids.get(character);
      throw new Error(`The model does not know the character ${i + 1}, “${character}”.`);
    });
  }

  /**
   * Returns the logits of the character text[end]; the cache may hold the context of the one before.
   * Calls pause() between steps.
   */
  async function nextLogits(text, end, cache, pause) {
    const context = contextLength(end, data.window, data.window_stride);
    if (context !== cache.length + 1) cache.length = 0;
    const wanted = text.slice(end - context + cache.length, end);
    let output;
    for (let start = 0; start < wanted.length; start += atOnce) {
      await pause();
      output = model.extend(wanted.slice(start, start + atOnce), cache);
    }
    return model.head(output);
  }

  return {
    problem, // why nothing can be generated, for people; undefined if all is well

    async generate(options, onCharacters, signal) {
      const { prompt, maxTokens, temperature, topK, topP, seed, noiseOffset } = options;
      const text = encode(prompt);
      if (!text.length) throw new Error("The prompt is empty: type at least one character.");
      const key = randomKey(seed);
      const cache = model.newCache();
      let ready = [];
      const flush = () => {
        if (ready.length) onCharacters(ready);
        ready = [];
      };
      const pause = makePause(signal, flush);
      for (let i = 0; i < maxTokens; i++) {
        const logits = await nextLogits(text, text.length, cache, pause);
        const noise = gumbel(foldIn(key, noiseOffset + i), vocabulary.length);
        const id = sampleCharacter(logits, noise, { temperature, topK, topP });
        text.push(id);
        ready.push({ character: vocabulary[id], logProbs: { ids: allIds, values: logSoftmax(logits) } });
      }
      flush();
      return "length";
    },

    /** The context of a character is what it would be if it were generated. */
    async score(text, signal) {
      const all = encode(text);
      const cache = model.newCache();
      const pause = makePause(signal);
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

/** Returns the model in the data of a page once it has computed something, or what is wrong. */
function loadModel(data) {
  try {
    const model = makeModel({ ...data, ...data.model }, decodeWeights(data.model));
    const logits = model.head(model.extend([0], model.newCache()));
    if (logits.length !== Array.from(data.vocabulary).length || logits.some(Number.isNaN)) {
      throw new Error("the model computes no logits");
    }
    return { model };
  } catch {
    return {
      problem: "The model in this file is damaged. Copy the file again, or make it anew with " +
        "python -m shakegpt_jax.export --format html.",
    };
  }
}

/**
 * Returns how many of the last characters of a text are context for the next one, as
 * `context_length` in shakegpt_jax/inference/sampler.py.
 */
function contextLength(length, window, stride) {
  if (length <= window) return length;
  return window - stride + 1 + ((length - window - 1) % stride);
}

/**
 * Returns a function to await between steps. Once a slice is over it calls `before` and gives way to
 * the events of the page; it rejects when the signal is aborted.
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

/** Resolves after the events that wait now. setTimeout would wait for 4 ms each time. */
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
