// The settings of a text: what they may be. Their names are those in the form, links and requests.

import { count } from "./common.js";
import { limits } from "./facts.js";

/** @import {Sampling} from "./facts.js" */
/** @typedef {{title: string, read: (text: string, name: string) => number, optional?: boolean}} Setting read: throws an Error that says what it must be; optional: null turns it off */

/**
 * Returns a function that reads a number from a text, or throws an Error that says what it must be.
 * @param {number} least @param {number} most @param {boolean} whole @param {string} right what it must be
 */
export function reader(least, most, whole, right) {
  return (/** @type {string} */ text, /** @type {string} */ name) => {
    const plain = whole ? text.trim() : text.trim().replace(",", "."); // some write 0,8
    const value = Number(plain);
    const isNumber = /^[0-9.]+(e[+-]?[0-9]+)?$/i.test(plain) && Number.isFinite(value);
    if (!isNumber || value < least || value > most || (whole && !Number.isInteger(value))) {
      throw new Error(`${name} must be ${right}`);
    }
    return value;
  };
}

const temperatures = `a number from 0 to ${count(limits.temperature)}`;

/** @type {Record<keyof Sampling, Setting>} */
export const SETTINGS = {
  temperature: { title: "Temperature", read: reader(0, limits.temperature, false, temperatures) },
  top_k: { title: "Top-k", read: reader(1, limits.top_k, true, "a whole number, 1 or more"), optional: true },
  top_p: { title: "Top-p", read: reader(1e-30, 1, false, "above 0, up to 1"), optional: true },
  min_p: { title: "Min-p", read: reader(0, 1, false, "from 0 to 1"), optional: true },
  seed: { title: "Seed", read: reader(0, limits.seed, true, `a whole number from 0 to ${limits.seed}`) },
};
export const NAMES = /** @type {(keyof Sampling)[]} */ (Object.keys(SETTINGS));

/** @param {number} most */
export const lengthReader = (most) => reader(1, most, true, `a whole number from 1 to ${count(most)}`);
