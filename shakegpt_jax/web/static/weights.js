// The weights of a model from the data of a page: float16 or float32 in base64.

import { decodeArray } from "./common.js";

/** @import {ModelData} from "./facts.js" */

/** Returns the weights by name; throws an Error if they are not what was written. @param {ModelData} model */
export function decodeWeights({ weights, checksum, dtype, sizes }) {
  const bytes = decodeArray(weights, Uint8Array);
  if (crc32(bytes) !== checksum) throw new Error("the weights have changed");
  const numbers = dtype === "float32" ? new Float32Array(bytes.buffer) : widenHalves(bytes);
  let end = 0;
  return new Map(sizes.map(([name, size]) => {
    end += size;
    return [name, numbers.subarray(end - size, end)];
  }));
}

/** Converts the bytes of float16 numbers with a table of all of them. @param {Uint8Array<ArrayBuffer>} bytes */
export function widenHalves(bytes) {
  const table = Float32Array.from({ length: 2 ** 16 }, (_, half) => {
    const sign = half >> 15 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
  const halves = new Uint16Array(bytes.buffer);
  const numbers = new Float32Array(halves.length);
  for (let i = 0; i < numbers.length; i++) numbers[i] = table[halves[i]];
  return numbers;
}

/** Returns the CRC-32 of bytes, as zlib computes it. @param {Uint8Array} bytes */
function crc32(bytes) {
  const table = Int32Array.from({ length: 256 }, (_, byte) => {
    let crc = byte;
    for (let i = 0; i < 8; i++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
    return crc;
  });
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
