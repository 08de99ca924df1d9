// The random numbers of JAX: Threefry-2x32 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as
// 1, 2, 3"), laid out as in jax.random with jax_threefry_partitionable, its default.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const SMALLEST_FLOAT32 = 2 ** -126; // the smallest normal number

/** @typedef {[number, number]} Key two 32-bit words */

/**
 * Encrypts two 32-bit counters; returns two signed words.
 * @param {Key} key @param {number} counter0 @param {number} counter1
 * @returns {Key}
 */
function threefry2x32([key0, key1], counter0, counter1) {
  const keys = [key0, key1, key0 ^ key1 ^ 0x1bd11bda];
  let x = (counter0 + key0) | 0;
  let y = (counter1 + key1) | 0;
  for (let i = 0; i < 5; i++) {
    const rotations = ROTATIONS[i % 2];
    for (let j = 0; j < 4; j++) {
      x = (x + y) | 0;
      y = ((y << rotations[j]) | (y >>> (32 - rotations[j]))) ^ x;
    }
    x = (x + keys[(i + 1) % 3]) | 0;
    y = (y + keys[(i + 2) % 3] + i + 1) | 0;
  }
  return [x, y];
}

/** Returns `jax.random.key(seed)` of a seed in [0, 2**32). @param {number} seed @returns {Key} */
export function randomKey(seed) {
  return [0, seed | 0];
}

/** Returns `jax.random.fold_in(key, number)` of a number in [0, 2**32). @param {Key} key @param {number} number */
export function foldIn(key, number) {
  return threefry2x32(key, 0, number | 0);
}

/** Returns `jax.random.bits(key, (n,))`. @param {Key} key @param {number} n */
export function randomBits(key, n) {
  return Uint32Array.from({ length: n }, (_, i) => {
    const [x, y] = threefry2x32(key, 0, i);
    return x ^ y;
  });
}

/**
 * Returns `jax.random.gumbel(key, (n,))`, up to the rounding of logarithms. The mode is "low", the default.
 * @param {Key} key @param {number} n
 */
export function gumbel(key, n) {
  return Float32Array.from(randomBits(key, n), gumbelOf);
}

/** Returns the standard Gumbel number that 32 random bits make; the lowest 9 are not used. @param {number} bits */
export function gumbelOf(bits) {
  const uniform = (bits >>> 9) * 2 ** -23 || SMALLEST_FLOAT32;
  return -Math.log(Math.fround(-Math.log(uniform)));
}
