// The forward pass of shakegpt_jax/model/gpt.py with a cache of keys and values. Sums are taken in
// float64, JavaScript's only precision, and stored in float32.

/** @typedef {{scale: Float32Array, bias: Float32Array}} Norm */
/** @typedef {{kernel: Float32Array, bias: Float32Array}} Dense with one row per output */
/** @typedef {{length: number, keys: Float32Array[], values: Float32Array[]}} Cache of the characters in a window */

const GELU_TANH_SCALE = Math.sqrt(2 / Math.PI);

/**
 * Returns a model.
 * @param {{layers: number, heads: number, width: number, window: number,
 *   activation: "gelu_exact" | "gelu_tanh", epsilon: number}} shape
 * @param {Map<string, Float32Array>} weights by name
 */
export function makeModel({ layers, heads, width, window, activation, epsilon }, weights) {
  const gelu = { gelu_exact: geluExact, gelu_tanh: geluTanh }[activation];
  /** @param {string} name */
  const get = (name) => {
    const found = weights.get(name);
    if (!found) throw new Error(`the model lacks ${name}`);
    return found;
  };
  /** @param {string} name @returns {Norm} */
  const norm = (name) => ({ scale: get(`${name}/scale`), bias: get(`${name}/bias`) });
  /** @param {string} name @returns {Dense} */
  const dense = (name) => ({ kernel: get(`${name}/kernel`), bias: get(`${name}/bias`) });
  const blocks = Array.from({ length: layers }, (_, i) => ({
    norm1: norm(`block_${i}/ln_1`),
    qkv: dense(`block_${i}/attn/c_attn`),
    attentionOut: dense(`block_${i}/attn/c_proj`),
    norm2: norm(`block_${i}/ln_2`),
    mlpIn: dense(`block_${i}/mlp/c_fc`),
    mlpOut: dense(`block_${i}/mlp/c_proj`),
  }));
  const finalNorm = norm("ln_f");
  const [wte, wpe, head] = ["wte/embedding", "wpe/embedding", "lm_head/kernel"].map(get);
  const headLayer = { kernel: head, bias: new Float32Array(head.length / width) };

  /** @returns {Cache} */
  function newCache() {
    const empty = () => blocks.map(() => new Float32Array(window * width));
    return { length: 0, keys: empty(), values: empty() };
  }

  /**
   * Adds characters to a cache that has room for them; returns the last one's (width,) output.
   * @param {number[]} ids @param {Cache} cache
   */
  function extend(ids, cache) {
    const x = new Float32Array(ids.length * width);
    ids.forEach((id, t) => {
      for (let i = 0; i < width; i++) {
        x[t * width + i] = wte[id * width + i] + wpe[(cache.length + t) * width + i];
      }
    });
    blocks.forEach((block, layer) => {
      const qkv = linear(layerNorm(x, block.norm1, epsilon), block.qkv, width);
      const mixed = attend(qkv, cache.keys[layer], cache.values[layer], cache.length);
      addTo(x, linear(mixed, block.attentionOut, width));
      const hidden = linear(layerNorm(x, block.norm2, epsilon), block.mlpIn, width);
      for (let i = 0; i < hidden.length; i++) hidden[i] = gelu(hidden[i]);
      addTo(x, linear(hidden, block.mlpOut, 4 * width));
    });
    cache.length += ids.length;
    return x.subarray(x.length - width);
  }

  /**
   * Stores keys and values from slot `start` on and attends from each character to all so far.
   * @param {Float32Array} qkv @param {Float32Array} keys @param {Float32Array} values @param {number} start
   */
  function attend(qkv, keys, values, start) {
    const count = qkv.length / (3 * width);
    const headWidth = width / heads;
    const mixed = new Float32Array(count * width);
    const scores = new Float64Array(start + count);
    for (let t = 0; t < count; t++) {
      const row = 3 * width * t;
      const slots = start + t + 1;
      keys.set(qkv.subarray(row + width, row + 2 * width), (slots - 1) * width);
      values.set(qkv.subarray(row + 2 * width, row + 3 * width), (slots - 1) * width);
      for (let first = 0; first < width; first += headWidth) {
        let largest = -Infinity;
        for (let s = 0; s < slots; s++) {
          let sum = 0;
          const key = s * width + first;
          for (let i = 0; i < headWidth; i++) sum += qkv[row + first + i] * keys[key + i];
          scores[s] = sum / Math.sqrt(headWidth);
          if (scores[s] > largest) largest = scores[s];
        }
        let total = 0;
        for (let s = 0; s < slots; s++) {
          scores[s] = Math.exp(scores[s] - largest);
          total += scores[s];
        }
        for (let i = 0; i < headWidth; i++) {
          let sum = 0;
          for (let s = 0; s < slots; s++) sum += scores[s] * values[s * width + first + i];
          mixed[t * width + first + i] = sum / total;
        }
      }
    }
    return mixed;
  }

  return {
    newCache,
    extend,
    /** Maps the output of `extend` to the logits of the next character. @param {Float32Array} x */
    head: (x) => linear(layerNorm(x, finalNorm, epsilon), headLayer, width),
  };
}

/**
 * Multiplies rows of `n` numbers by a layer. It takes four outputs and two rows at a time, so that
 * each number that it reads is used several times.
 * @param {Float32Array} x @param {Dense} layer @param {number} n
 */
function linear(x, { kernel, bias }, n) {
  const m = bias.length;
  const rows = x.length / n;
  const y = new Float32Array(rows * m);
  for (let j = 0; j < m; j += 4) {
    // Past the last output it computes that one again.
    const j1 = Math.min(j + 1, m - 1), j2 = Math.min(j + 2, m - 1), j3 = Math.min(j + 3, m - 1);
    const k0 = j * n, k1 = j1 * n, k2 = j2 * n, k3 = j3 * n;
    const b0 = bias[j], b1 = bias[j1], b2 = bias[j2], b3 = bias[j3];
    let row = 0;
    for (; row + 1 < rows; row += 2) {
      const xa = row * n, xb = xa + n, ya = row * m, yb = ya + m;
      let a0 = b0, a1 = b1, a2 = b2, a3 = b3, c0 = b0, c1 = b1, c2 = b2, c3 = b3;
      for (let i = 0; i < n; i++) {
        const a = x[xa + i], c = x[xb + i];
        const w0 = kernel[k0 + i], w1 = kernel[k1 + i], w2 = kernel[k2 + i], w3 = kernel[k3 + i];
        a0 += a * w0; a1 += a * w1; a2 += a * w2; a3 += a * w3;
        c0 += c * w0; c1 += c * w1; c2 += c * w2; c3 += c * w3;
      }
      y[ya + j] = a0; y[ya + j1] = a1; y[ya + j2] = a2; y[ya + j3] = a3;
      y[yb + j] = c0; y[yb + j1] = c1; y[yb + j2] = c2; y[yb + j3] = c3;
    }
    if (row < rows) {
      const xa = row * n, ya = row * m;
      let a0 = b0, a1 = b1, a2 = b2, a3 = b3;
      for (let i = 0; i < n; i++) {
        const a = x[xa + i];
        a0 += a * kernel[k0 + i];
        a1 += a * kernel[k1 + i];
        a2 += a * kernel[k2 + i];
        a3 += a * kernel[k3 + i];
      }
      y[ya + j] = a0; y[ya + j1] = a1; y[ya + j2] = a2; y[ya + j3] = a3;
    }
  }
  return y;
}

/**
 * Normalizes each row, of as many numbers as there are scales.
 * @param {Float32Array} x @param {Norm} norm @param {number} epsilon
 */
function layerNorm(x, { scale, bias }, epsilon) {
  const n = scale.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += n) {
    let mean = 0, variance = 0;
    for (let i = 0; i < n; i++) mean += x[start + i] / n;
    for (let i = 0; i < n; i++) variance += (x[start + i] - mean) ** 2 / n;
    const factor = 1 / Math.sqrt(variance + epsilon);
    for (let i = 0; i < n; i++) y[start + i] = (x[start + i] - mean) * factor * scale[i] + bias[i];
  }
  return y;
}

/** Adds y to x in place. @param {Float32Array} x @param {Float32Array} y */
function addTo(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** The tanh approximation of GELU (Hendrycks and Gimpel 2016), as in GPT-2. @param {number} x */
export function geluTanh(x) {
  return 0.5 * x * (1 + Math.tanh(GELU_TANH_SCALE * (x + 0.044715 * x * x * x)));
}

/** GELU with the error function by formula 7.1.26 of Abramowitz and Stegun: within 1.5e-7. @param {number} x */
export function geluExact(x) {
  const z = Math.abs(x) * Math.SQRT1_2;
  const t = 1 / (1 + 0.3275911 * z);
  const series = 1.421413741 + t * (-1.453152027 + t * 1.061405429);
  const tail = t * (0.254829592 + t * (-0.284496736 + t * series)) * Math.exp(-z * z);
  return 0.5 * x * (1 + Math.sign(x) * (1 - tail));
}
