// The report: reads the data of the page and fills it.

import { attentionPanel } from "./attention.js";
import { showCalibration, showKinds, showPositions, withError } from "./charts.js";
import { $, count, decodeArray, element, percent, spokenCharacter } from "./common.js";
import { longestStretch, rankEntries, showDistribution, spokenEntry } from "./distribution.js";
import { surprise, textView } from "./text_view.js";

/** @import {Line} from "./attention.js" */
/** @import {Calibration, Groups, NamedGroups} from "./charts.js" */
/** @import {Stretch} from "./common.js" */
/** @import {Facts} from "./facts.js" */
/**
 * What shakegpt_jax/web/report.py writes. Arrays are in base64.
 * @typedef {object} Report
 * @property {Facts} run
 * @property {{name: string, characters: number, pieces: number, stride: number}} text
 * @property {{loss: number, standard_error: number | null, perplexity: number | null, bits_per_character: number,
 *   count: number, accuracy: number}} evaluation
 * @property {Shown} shown
 * @property {Groups} positions
 * @property {NamedGroups} kinds
 * @property {NamedGroups} letters
 * @property {Calibration} calibration
 */
/**
 * @typedef {object} Shown
 * @property {string} text
 * @property {number[]} starts of its pieces, whose first characters are not predicted
 * @property {string} losses
 * @property {{size: number, unit: number, values: string, ids: string | null}} distributions of each character,
 *   -log probabilities of the ids in units; null: of all ids in order
 * @property {{lines: Line[], values: string}} attention
 * @property {{shortest: number, stretches: Stretch[], whole: boolean, problem?: string, source: string}} copies
 */

/** @type {Report} */
const report = JSON.parse($("data").textContent ?? "");
const { run, text, evaluation, shown } = report;
const characters = Array.from(shown.text);
const starts = new Set(shown.starts);

/** @param {number} number @param {string} noun */
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function showHeader() {
  $("title").textContent = `Looking inside ${run.name}`;
  $("summary").textContent =
    `A character-level GPT of ${count(run.parameters)} parameters (${plural(run.layers, "layer")} of ` +
    `${plural(run.heads, "head")}, window of ${run.window} characters) after ` +
    `${plural(run.step ?? 0, "training step")}, evaluated on ${text.name}: ${plural(evaluation.count, "character")}` +
    (evaluation.count < text.characters - 1
      ? `, in ${plural(text.pieces, "piece")} spread over ${count(text.characters)}.` : ".");
  const figures = {
    "loss, nats/character": withError(evaluation.loss, evaluation.standard_error, 4),
    perplexity: evaluation.perplexity?.toFixed(3) ?? "too large",
    "bits per character": evaluation.bits_per_character.toFixed(3),
    "most probable is right": percent(evaluation.accuracy),
  };
  $("figures").append(...Object.entries(figures).map(([name, value]) =>
    element("div", "", "", element("dt", "", name), element("dd", "", value))));
}

function copiesNote() {
  const { stretches, shortest, whole, problem, source } = shown.copies;
  if (problem) return `Copies of the training text are not underlined, because it could not be read: ${problem}.`;
  const covered = new Set(stretches.flatMap(({ start, end }) =>
    Array.from({ length: end - start }, (_, i) => start + i)));
  let note = `No stretch of ${shortest} or more characters stands in the training text, word for word.`;
  if (whole) {
    note = "All of the shown text stands in the text that the model was trained on, word for word: its loss " +
      "says little about new text.";
  } else if (covered.size) {
    note = `Underlined are stretches of ${shortest} or more characters that stand in the training text, word for ` +
      `word: ${percent(covered.size / characters.length)} of the shown text. A confident model may simply remember them.`;
  }
  if (source) note += ` The text of ${source}, from which the model started, has not been compared.`;
  return note;
}

/** @param {boolean} split whether long lines are cut */
function attentionNote(split) {
  const { length } = shown.attention.lines;
  if (!length) return "There is no line to open.";
  const [kind, kinds] = split ? ["line or piece", "lines or pieces"] : ["line", "lines"];
  return (split ? `A line of more than ${run.window} characters is cut into pieces. ` : "") +
    `Each ${kind} is read in a window that ends with it. The first ` +
    `${length === 1 ? kind : `${count(length)} ${kinds}`} can be opened.`;
}

function showNotes() {
  const notes = {
    shown: characters.length === text.characters ? "The whole text is shown."
      : characters.length === evaluation.count + starts.size ? "All pieces are shown."
      : `The first ${count(characters.length)} characters are shown; the figures cover all ${count(evaluation.count)}.`,
    copies: copiesNote(),
    attention: attentionNote(shown.attention.lines.some(([start, end]) => !isWhole(start, end))),
    positions: "How much it helps to have read more of the window before the predicted character. " +
      (text.stride === run.window ? `The windows of ${run.window} characters do not overlap.`
        : `The windows of ${run.window} characters start every ${text.stride}, so most characters are ` +
          `predicted from ${run.window - text.stride + 1} or more.`) + " The band is one standard error.",
    calibration: "When the model gives its most probable character 80%, that character should come in 80% of the " +
      "cases: on the dashed line. Below the line, the model is too sure. The expected calibration error, the mean " +
      `distance from the line in ${report.calibration.counts.length} equal bins, is ` +
      `${(100 * report.calibration.error).toFixed(2)}% (Guo et al. 2017). The grey columns show how many characters ` +
      "each bin has.",
  };
  for (const [name, note] of Object.entries(notes)) $(`${name}-note`).textContent = note;
  if (shown.copies.problem || !shown.copies.stretches.length) $("copied-legend").remove();
}

/** Returns whether characters are a line without its newline. @param {number} start @param {number} end */
function isWhole(start, end) {
  return (!start || starts.has(start) || characters[start - 1] === "\n") &&
    (end === characters.length || starts.has(end) || characters[end] === "\n");
}

function showText() {
  const vocabulary = Array.from(run.vocabulary);
  const losses = decodeArray(shown.losses, Float32Array);
  const { size, unit } = shown.distributions;
  const values = decodeArray(shown.distributions.values, Uint16Array);
  const ids = shown.distributions.ids && decodeArray(shown.distributions.ids, Uint32Array);
  const attention = attentionPanel(
    shown.attention.lines, decodeArray(shown.attention.values, Uint8Array), characters, run.layers, run.heads);
  const view = textView($("text"), {
    point: showPrediction,
    choose(index) {
      showPrediction(index);
      openLine();
    },
    enter: openLine,
    first: () => 0,
  });
  let current = 0;

  /** @param {number} i */
  function showPrediction(i) {
    current = i;
    view.mark(i);
    const stretch = longestStretch(shown.copies.stretches, i);
    const copied = stretch ? `Part of ${count(stretch.end - stretch.start)} characters that stand in the training ` +
      `text, at character ${count(stretch.place + 1)}. ` : "";
    $("prediction-title").textContent = `Character ${count(i + 1)}: ${spokenCharacter(characters[i])}`;
    if (starts.has(i)) {
      $("prediction-text").textContent = "The first character is not predicted.";
      $("prediction-note").textContent = copied;
      $("distribution").replaceChildren();
      return;
    }
    const entries = Array.from({ length: size }, (_, k) => ({
      character: vocabulary[ids ? ids[i * size + k] : k],
      probability: Math.exp(-unit * values[i * size + k]),
    }));
    const { ordered, rank } = rankEntries(entries, characters[i]);
    const place = rank < 0 ? `not among the ${size} most probable` : `number ${rank + 1} of ${count(vocabulary.length)}`;
    $("prediction-text").textContent = `The model gave it ${percent(Math.exp(-losses[i]))} (${place}, loss ` +
      `${losses[i].toFixed(2)}). Most probable: ${ordered.slice(0, 4).map(spokenEntry).join(", ")}.`;
    const sum = percent(entries.reduce((total, { probability }) => total + probability, 0));
    const bars = ids ? `the ${size} most probable of ${count(vocabulary.length)} characters, ${sum} together`
      : `all ${size} characters`;
    $("prediction-note").textContent =
      `${copied}The bars are ${bars}; the tallest fills the height. The blue bar is the character that came.`;
    showDistribution($("distribution"), entries, characters[i]);
  }

  function openLine() {
    const last = characters[current] === "\n" && !isWhole(current, current) ? current - 1 : current;
    const line = attention.show(last);
    view.select(line?.start ?? last, line?.end ?? last + 1);
    $("attention-title").textContent = !line ? "Attention"
      : `Attention of the chosen ${isWhole(line.start, line.end) ? "line" : "piece of a long line"}`;
    if (!line) {
      attention.clear(characters[last] === "\n" ? "The chosen line is empty."
        : "The attention of the chosen line is not stored.");
    }
  }

  view.append(characters.map((character, i) => starts.has(i) ? { character, gap: i > 0 }
    : { character, level: surprise(-losses[i]) }));
  view.underline(shown.copies.stretches);
  // Something to see at once: the most surprising character of the first lines that can be opened.
  const first = losses.slice(0, Math.min(400, shown.attention.lines.at(-1)?.[1] ?? 400));
  showPrediction(first.reduce((best, loss, i) => (!starts.has(i) && loss > first[best] ? i : best), 1));
  openLine();
}

showHeader();
showNotes();
showPositions($("positions"), report.positions);
showCalibration($("calibration"), report.calibration);
showKinds($("kinds"), { "By kind": report.kinds, "By place in the word": report.letters }, evaluation);
showText();
