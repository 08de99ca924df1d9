// The model behind a server that speaks the OpenAI completions API.

import { count } from "./common.js";

/** @import {Backend, Copy, Facts, LogProbs} from "./facts.js" */
/** @typedef {Record<string, number>} ByCharacter log-probabilities */
/** @typedef {{choices: {logprobs: {tokens: string[], top_logprobs: ByCharacter[]} | null, finish_reason: string | null}[], error?: {message: string}}} Event */

const MOST_LOG_PROBS = 256; // per character, the largest; the others are not known

/**
 * Returns a backend that asks the server that the page came from.
 * @param {Pick<Facts, "name" | "vocabulary" | "limits">} facts
 * @returns {Backend}
 */
export function makeBackend({ name, vocabulary, limits }) {
  const characters = Array.from(vocabulary);
  const idOf = new Map(characters.map((character, id) => [character, id]));
  const nLogProbs = Math.min(characters.length, MOST_LOG_PROBS);
  const atOnce = Math.floor(limits.log_probs / (nLogProbs + 1)); // characters in one answer

  /** @param {ByCharacter} byCharacter @returns {LogProbs} */
  function toLogProbs(byCharacter) {
    const known = Object.entries(byCharacter).filter(([, value]) => value > -9999)
      .map(([character, value]) => ({ id: idOf.get(character) ?? -1, value })).sort((a, b) => a.id - b.id);
    return { ids: Uint32Array.from(known, ({ id }) => id), values: Float32Array.from(known, ({ value }) => value) };
  }

  return {
    async generate({ maxTokens, noiseOffset, ...options }, onTokens, signal) {
      const response = await post("v1/completions", {
        ...options,
        model: name,
        max_tokens: Math.min(maxTokens, atOnce),
        noise_offset: noiseOffset,
        logprobs: nLogProbs,
        stream: true,
      }, signal);
      let reason = null;
      for await (const { choices, error } of readEvents(response)) {
        if (error) throw new Error(sentence(error.message));
        const { logprobs = null, finish_reason = null } = choices[0] ?? {};
        if (logprobs?.tokens.length) {
          onTokens(logprobs.tokens.map((character, i) =>
            ({ character, logProbs: toLogProbs(logprobs.top_logprobs[i]) })));
        }
        reason = finish_reason ?? reason;
      }
      if (!reason) throw new Error("The connection was lost.");
      return reason;
    },

    async score(text, signal) {
      if (Array.from(text).length > atOnce) {
        throw new Error(`Chances are computed for prompts of up to ${count(atOnce)} characters.`);
      }
      const response = await post("v1/completions", {
        model: name, prompt: text, max_tokens: 0, echo: true, logprobs: nLogProbs,
      }, signal);
      const { choices: [{ logprobs }] } = await response.json();
      return logprobs.top_logprobs.map((/** @type {ByCharacter | null} */ each) => each && toLogProbs(each));
    },

    async verbatim(text, signal) {
      const searched = Array.from(text).slice(-limits.searched); // of a longer text, its end
      const offset = Array.from(text).length - searched.length;
      try {
        const response = await post("v1/verbatim", { text: searched.join("") }, signal);
        const { shortest, stretches } = await response.json();
        return {
          shortest,
          stretches: stretches.map((/** @type {Copy} */ each) =>
            ({ ...each, start: each.start + offset, end: each.end + offset })),
        };
      } catch (error) {
        const { name: kind, message } = /** @type {Error} */ (error);
        if (kind === "AbortError") throw error;
        return { problem: message };
      }
    },
  };
}

/**
 * Sends JSON and returns the response; throws an Error with a message for people. The path is
 * relative to the page, so that a proxy may serve both below a folder.
 * @param {string} path @param {object} body @param {AbortSignal} [signal]
 */
async function post(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?", { cause: error });
  }
  if (response.ok) return response;
  if (response.status === 429) {
    const seconds = response.headers.get("Retry-After");
    const message = `The server is busy. Try again ${seconds ? `in ${seconds} s` : "soon"}.`;
    throw Object.assign(new Error(message), { busy: true });
  }
  const answer = await response.json().catch(() => null);
  throw new Error(sentence(answer?.error?.message ?? `the server answered ${response.status}`));
}

/**
 * Yields the JSON of the server-sent events of a response.
 * @param {Response} response
 * @returns {AsyncGenerator<Event>}
 */
async function* readEvents(response) {
  const decoder = new TextDecoder();
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const events = (rest + decoder.decode(value, { stream: !done })).split(/\r?\n\r?\n/);
      rest = done ? "" : events.pop() ?? "";
      for (const event of events) {
        const data = event.match(/^data: ?(.*)$/m)?.[1];
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
      if (done) return;
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // what browsers raise when a connection ends
    throw new Error("The connection broke off.", { cause: error });
  }
}

/** Returns a message as a sentence, so that it can stand before others. @param {string} message */
function sentence(message) {
  return message.charAt(0).toUpperCase() + message.slice(1).replace(/\.?$/, ".");
}
