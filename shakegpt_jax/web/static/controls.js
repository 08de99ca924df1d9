"use strict";
// The form: what to write, and what is wrong with it.

/** Returns the characters of a text that are not in a vocabulary, each once. */
function unknownCharacters(text, vocabulary) {
  const known = new Set(vocabulary);
  return [...new Set(Array.from(text).filter((character) => !known.has(character)))];
}

/** Returns a sentence about unknown characters; empty if there are none. */
function nameUnknown(characters) {
  if (!characters.length) return "";
  const shown = characters.slice(0, 8).map(spokenCharacter).join(", ");
  const more = characters.length > 8 ? ` and ${characters.length - 8} more` : "";
  const reason = characters.length > 1 ? "they are not" : "it is not";
  return `The model does not know ${shown}${more}: ${reason} in its training text.`;
}

/**
 * Reads and fills the form.
 * @param {string[]} vocabulary
 * @param {() => void} change called when something was typed
 */
function controlsForm(vocabulary, change) {
  const fields = {
    temperature: { id: "temperature", name: "Temperature", read: readTemperature },
    topK: { id: "top-k", name: "Top-k", read: readTopK, optional: true },
    topP: { id: "top-p", name: "Top-p", read: readTopP, optional: true },
    seed: { id: "seed", name: "Seed", read: readSeed },
    length: { id: "length", name: "Length", read: (text, name) => readLength(text, name, limits.length) },
  };

  function readField({ id, name, read, optional }, problems) {
    const text = $(id).value.trim();
    try {
      $(id).removeAttribute("aria-invalid");
      return optional && !text ? null : read(text, name);
    } catch (error) {
      $(id).setAttribute("aria-invalid", "true");
      problems.push(`${error.message}${optional ? ", or empty" : ""}.`);
      return null;
    }
  }

  /** Returns the settings, the length, and what is wrong with the prompt and with the rest. */
  function read() {
    const problems = [], values = {};
    const prompt = $("prompt").value;
    const unknown = nameUnknown(unknownCharacters(prompt, vocabulary));
    const promptProblem = prompt ? unknown : "Write a prompt: the model needs one character to go on from.";
    $("prompt").setAttribute("aria-invalid", Boolean(unknown));
    for (const [key, field] of Object.entries(fields)) values[key] = readField(field, problems);
    const { length, ...settings } = values;
    return { settings: { prompt, ...settings }, length, promptProblem, optionsProblem: problems.join(" ") };
  }

  function showProblems() {
    const { promptProblem, optionsProblem } = read();
    for (const [id, text] of [["prompt-problem", promptProblem], ["options-problem", optionsProblem]]) {
      if ($(id).textContent !== text) $(id).textContent = text; // what is the same is not read again
    }
    change(!promptProblem && !optionsProblem);
  }

  for (const name of ["input", "change"]) $("controls").addEventListener(name, showProblems);
  $("dice").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    showProblems();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("controls").requestSubmit();
  });

  return {
    read,
    fill({ prompt, temperature, topK, topP, seed }, length = null) {
      $("prompt").value = prompt;
      $("temperature").value = temperature;
      $("top-k").value = topK ?? "";
      $("top-p").value = topP ?? "";
      $("seed").value = seed;
      if (length !== null) $("length").value = length;
      showProblems();
    },
  };
}
