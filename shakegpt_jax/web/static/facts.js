// What the page with a prompt knows about its model, as shakegpt_jax/web/prompt_page.py writes it.

import { $ } from "./common.js";

/**
 * @typedef {object} Facts
 * @property {string} name of the run
 * @property {string} vocabulary in the order of ids
 * @property {number} parameters
 * @property {number} layers
 * @property {number} heads
 * @property {number} width
 * @property {number} window
 * @property {number} window_stride characters dropped when the window is full
 * @property {number | null} step of the checkpoint
 * @property {number | null} loss of the checkpoint
 * @property {string} prompt
 * @property {string} text that it was trained on
 * @property {{temperature: number, seed: number, length: number}} defaults
 * @property {{temperature: number, top_k: number, seed: number, length: number, text: number,
 *   log_probs: number, searched: number}} limits
 * @property {ModelData} [model]
 */
/**
 * The model inside a page.
 * @typedef {object} ModelData
 * @property {string} weights in base64; linear layers with one row per output
 * @property {[name: string, size: number][]} sizes of the parameters in the order of the weights
 * @property {"float16" | "float32"} dtype
 * @property {number} checksum CRC-32 of the weights
 * @property {"gelu_tanh" | "gelu_exact"} activation
 * @property {number} epsilon of LayerNorm
 */
/** @typedef {{ids: Uint32Array, values: Float32Array}} LogProbs of ids in ascending order; others are not known */
/** @typedef {{character: string, logProbs: LogProbs}} Token */
/** @typedef {{temperature: number, top_k: number | null, top_p: number | null, min_p: number | null, seed: number}} Sampling null turns a rule off */
/** @typedef {{start: number, end: number, place: number, before: string, after: string}} Copy a stretch, its place in the training text, and what is around it there */
/** @typedef {{shortest?: number, stretches?: Copy[], problem?: string}} Found copies, or why there are none */
/**
 * What generates, scores and searches; problem says why nothing can be generated.
 * @typedef {object} Backend
 * @property {string} [problem]
 * @property {(options: Sampling & {prompt: string, maxTokens: number, noiseOffset: number},
 *   onTokens: (tokens: Token[]) => void, signal?: AbortSignal) => Promise<string>} generate
 * @property {(text: string, signal?: AbortSignal) => Promise<(LogProbs | null)[]>} score
 * @property {(text: string, signal?: AbortSignal) => Promise<Found>} verbatim
 */

/** @type {Facts} */
export const facts = JSON.parse($("data").textContent ?? "");
export const { limits } = facts;
export const vocabulary = Array.from(facts.vocabulary);
export const ids = new Map(vocabulary.map((character, id) => [character, id]));
