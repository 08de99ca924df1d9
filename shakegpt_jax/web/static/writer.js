"use strict";
// Writing: asks the backend for what versions lack, one job at a time.

/** Returns the text of a version. */
function versionText({ settings, tokens }) {
  return settings.prompt + tokens.map((token) => token.character).join("");
}

/**
 * Generates until a version has a length; onTokens adds what came, piece by piece.
 * With the noise of its place, a text that goes on is the text that was written at once.
 */
async function writeTo(backend, version, length, onTokens, signal) {
  const { prompt: _, ...options } = version.settings;
  while (version.tokens.length < length) {
    const noiseOffset = version.tokens.length;
    await backend.generate({
      prompt: versionText(version), maxTokens: Math.min(length - noiseOffset, limits.length),
      noiseOffset, ...options,
    }, (tokens) => {
      if (signal.aborted) return;
      version.tokens.push(...tokens);
      onTokens(tokens);
    }, signal);
    if (version.tokens.length === noiseOffset) throw new Error("The model wrote nothing.");
  }
}

/** Returns the version of a link, with what was written before its last change. */
async function versionOfLink(backend, { length, changes, ...settings }, find, signal) {
  let version = makeVersion(settings, length);
  version = find(version) ?? version;
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
function jobRunner(onBusy, onProblem) {
  let controller = null;

  function stop() {
    controller?.abort();
    controller = null;
    onBusy(false);
  }

  /** Runs work(signal); again() is what "Try again" does. Returns whether it came to its end. */
  async function run(work, again) {
    stop();
    const own = (controller = new AbortController());
    onBusy(true);
    try {
      await work(own.signal);
      return true;
    } catch (error) {
      if (own.signal.aborted) return false;
      own.abort();
      onProblem(error.message, again);
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
