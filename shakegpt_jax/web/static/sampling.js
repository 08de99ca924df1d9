// Sampling of one character, as shakegpt_jax/inference/sampling.py does it, in float32.

/** @import {Sampling} from "./facts.js" */

/**
 * Returns the id of the sampled character: temperature, top-k, top-p, min-p, and then Gumbel-max.
 * @param {Float32Array} logits
 * @param {Float32Array} noise standard Gumbel noise; not used if the temperature is 0
 * @param {Omit<Sampling, "seed">} options
 */
export function sampleCharacter(logits, noise, { temperature, top_k, top_p, min_p }) {
  const greedy = Math.fround(temperature) === 0;
  const largest = logits.reduce((a, b) => Math.max(a, b));
  // With a maximum of 0, dividing by a small temperature cannot overflow.
  const divisor = greedy ? 1 : Math.fround(temperature);
  const scaled = logits.map((logit) => Math.fround(logit - largest) / divisor);
  if (top_k !== null || (top_p !== null && top_p !== 1)) {
    // The sort is stable: of equal logits, the first comes first.
    const order = Array.from(scaled.keys()).sort((a, b) => scaled[b] - scaled[a] || a - b);
    if (top_k !== null) for (const id of order.slice(top_k)) scaled[id] = -Infinity;
    if (top_p !== null && top_p !== 1) dropTail(scaled, order, Math.fround(top_p));
  }
  if (min_p !== null) {
    const least = Math.fround(Math.log(Math.fround(min_p)));
    scaled.forEach((logit, id) => { if (logit < least) scaled[id] = -Infinity; });
  }
  const noisy = greedy ? scaled : scaled.map((logit, id) => logit + noise[id]);
  return noisy.indexOf(noisy.reduce((a, b) => Math.max(a, b)));
}

/**
 * Drops the characters before which the more probable ones add up to `topP` already.
 * @param {Float32Array} scaled @param {number[]} order @param {number} topP
 */
function dropTail(scaled, order, topP) {
  const probabilities = logSoftmax(scaled).map(Math.exp);
  let sum = 0;
  for (const id of order) {
    sum = Math.fround(sum + probabilities[id]);
    if (Math.fround(sum - probabilities[id]) >= topP) scaled[id] = -Infinity;
  }
}

/** Returns natural log-probabilities. @param {Float32Array} logits */
export function logSoftmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const total = logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0);
  return logits.map((logit) => logit - largest - Math.log(total));
}
