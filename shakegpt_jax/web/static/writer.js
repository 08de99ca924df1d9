// Writing: asks the backend for what versions lack, one job at a time.

import { limits } from "./facts.js";
import { branchOff, makeVersion, setLength, versionText } from "./tree.js";

/** @import {Backend, Token} from "./facts.js" */
/** @import {Change, Settings, Version} from "./tree.js" */
/** @typedef {ReturnType<typeof jobRunner>} Jobs */

/**
 * Generates until a version has a length; onTokens adds what came, piece by piece.
 * Each place has its own noise, so a continued text is the text that would be written at once.
 * @param {Backend} backend @param {Version} version @param {number} length
 * @param {(tokens: Token[]) => void} onTokens @param {AbortSignal} signal
 */
export async function writeTo(backend, version, length, onTokens, signal) {
  while (version.tokens.length < length) {
    const noiseOffset = version.tokens.length;
    const maxTokens = Math.min(length - noiseOffset, limits.length);
    await backend.generate({ ...version.settings, prompt: versionText(version), maxTokens, noiseOffset }, (tokens) => {
      if (signal.aborted) return;
      version.tokens.push(...tokens);
      onTokens(tokens);
    }, signal);
    if (version.tokens.length === noiseOffset) throw new Error("The model wrote nothing.");
  }
}

/**
 * Returns the version of a link, with what was written before its last change.
 * @param {Backend} backend @param {{settings: Settings, length: number, changes: Change[]}} link
 * @param {(version: Pick<Version, "settings" | "changes">) => Version | undefined} find
 * @param {AbortSignal} signal
 */
export async function versionOfLink(backend, { settings, length, changes }, find, signal) {
  let version = find({ settings, changes: [] }) ?? makeVersion(settings, length);
  for (const [i, [place, character]] of changes.entries()) {
    const known = find({ settings, changes: changes.slice(0, i + 1) });
    if (known) {
      version = known;
      continue;
    }
    // One more than is kept: its chances are those of the place that was changed.
    await writeTo(backend, version, place + 1, () => {}, signal);
    version = branchOff(version, place, character);
  }
  setLength(version, length);
  return version;
}

/**
 * Runs one job at a time; a new one aborts the one before.
 * @param {(busy: boolean) => void} onBusy
 * @param {(message: string, again: () => void) => void} onProblem
 */
export function jobRunner(onBusy, onProblem) {
  let controller = /** @type {AbortController | null} */ (null);

  function stop() {
    controller?.abort();
    controller = null;
    onBusy(false);
  }

  /**
   * Runs work(signal); again() is what "Try again" does. Returns whether it came to its end.
   * @param {(signal: AbortSignal) => Promise<void>} work @param {() => void} again
   */
  async function run(work, again) {
    stop();
    const own = new AbortController();
    controller = own;
    onBusy(true);
    try {
      await work(own.signal);
      return true;
    } catch (error) {
      if (own.signal.aborted) return false;
      own.abort();
      onProblem(error instanceof Error ? error.message : String(error), again);
      return false;
    } finally {
      if (controller === own) {
        controller = null;
        onBusy(false);
      }
    }
  }

  return { run, stop, get busy() { return controller !== null; } };
}
