"use strict";
// The character of the text whose chances are shown, and the branches that start there. It sets
// `pointed` and `held`.

let pointed = -1, held = false; // the character; whether it stays when the pointer moves on
const promptScores = new Map(); // of each prompt, its {scores}, the {problem}, or {} while it is scored

/** What the text view calls. */
const textEvents = {
  point(index, byMouse = false) {
    if (!byMouse || !(held || SHEET.matches)) showChances(index, { hold: held });
  },
  choose(index) {
    const release = held && pointed === index;
    if (release && SHEET.matches) closeChances();
    else showChances(index, { hold: !release });
    revealCopied();
    view.reveal(index); // above the sheet
  },
  enter() {
    if (pointed < 0) return;
    showChances(pointed, { hold: true });
    panel.focus();
  },
  first: () => (current?.promptLength ?? 0),
};

function showChances(index, { hold }) {
  [pointed, held] = [index, hold];
  view.mark(index);
  const { settings, tokens, changes, found } = current;
  const text = Array.from(versionText(current)), place = index - current.promptLength;
  if (place < 0) scorePrompt();
  const { scores, problem = "" } = promptScores.get(settings.prompt) ?? {};
  const logProbs = place < 0 ? scores?.[index] ?? null : tokens[place].logProbs;
  const stretch = longestStretch(found?.stretches ?? [], index);
  panel.show({
    title: `${place < 0 ? "Prompt: " : ""}${spokenCharacter(text[index])}`,
    character: text[index],
    logProbs,
    stretch: stretch && { ...stretch, text: text.slice(stretch.start, stretch.end) },
    note: !index ? "The first character is not predicted."
      : !logProbs ? problem
      : (changes.some(([each]) => each === place) ? "You chose this one. " : "") +
        "Choose another one to see what the same dice would have written after it." +
        (held ? "" : " Click the character to hold it here."),
  });
}

/** Scrolls to the place in the training text, where that leaves the text in sight. */
function revealCopied() {
  if (held && !SHEET.matches) panel.revealCopied();
}

function closeChances() {
  const inside = $("panel").contains(document.activeElement);
  [pointed, held] = [-1, false];
  view.mark(-1);
  panel.clear();
  for (const [prompt, { problem }] of promptScores) if (problem) promptScores.delete(prompt); // asked for anew
  if (inside) view.focus();
}

/** Goes to the version whose character at an index of the text is another. */
function branch(index, character) {
  if (!current || index < 0) return;
  const place = index - current.promptLength;
  if (place >= 0 && current.tokens[place].character === character) return;
  const version = place < 0 ? changePrompt(current, index, character) : branchOff(current, place, character);
  const known = tree.find(version);
  if (known !== current) select(known ?? version, { at: index });
}

/** Returns the version that the same dice write after a prompt with another character. */
function changePrompt({ settings, target }, index, character) {
  const prompt = Array.from(settings.prompt).with(index, character).join("");
  return makeVersion({ ...settings, prompt }, target);
}

/** Computes the chances of the characters of the prompt, once per prompt unless that fails. */
async function scorePrompt() {
  const { prompt } = current.settings;
  if (promptScores.has(prompt)) return;
  promptScores.set(prompt, {});
  promptScores.set(prompt, await backend.score(prompt)
    .then((scores) => ({ scores }), ({ message }) => ({ problem: `Its chance is not known. ${message}` })));
  if (current?.settings.prompt !== prompt) return;
  colourPrompt();
  if (pointed < 0 || pointed >= current.promptLength) return;
  showChances(pointed, { hold: held });
  revealCopied();
}

function colourPrompt() {
  if (!$("colour").checked || !current) return;
  scorePrompt();
  const { scores } = promptScores.get(current.settings.prompt);
  if (scores) Array.from(current.settings.prompt).forEach((character, i) => {
    if (scores[i]) view.colour(i, logProbOf({ character, logProbs: scores[i] }));
  });
}
