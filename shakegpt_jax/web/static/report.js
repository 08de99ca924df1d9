"use strict";
// The report: reads the data of the page and fills it.

const data = JSON.parse(document.getElementById("data").textContent);

/** Returns the numbers of a little-endian array in base64. */
function decodeArray(text, Type) {
  return new Type(Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0)).buffer);
}

const $ = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");

function showHeader({ run, text, evaluation }) {
  $("title").textContent = `Looking inside ${run.name}`;
  $("summary").textContent =
    `A character-level GPT of ${count(run.parameters)} parameters (${run.layers} layers of ${run.heads} ` +
    `heads, window of ${run.window} characters) after ${count(run.step)} training steps, evaluated on ` +
    `${text.name}: ${count(evaluation.count)} characters` +
    (evaluation.count < text.characters - 1
      ? `, in ${count(text.pieces)} pieces spread over ${count(text.characters)}.` : ".");
  const figures = {
    "loss, nats/character": `${evaluation.loss.toFixed(4)} ± ${evaluation.standard_error.toFixed(4)}`,
    perplexity: evaluation.perplexity.toFixed(3),
    "bits per character": evaluation.bits_per_character.toFixed(3),
    "most probable is right": percent(evaluation.accuracy),
  };
  $("figures").append(...Object.entries(figures).map(([name, value]) =>
    element("div", "", "", element("dt", "", name), element("dd", "", value))));
  $("ramp").append(...["100%", "50%", "10%", "1%", "≤0.1%"].map((label) => element("span", "", label)));
  $("weight-ramp").append(...["0%", "6%", "25%", "56%", "100%"].map((label) => element("span", "", label)));
}

function showNotes({ shown, text, evaluation, positions, calibration }, nShown, attention) {
  const all = nShown === text.characters;
  $("shown-note").textContent = all
    ? "All of the text is shown." : `The first ${count(nShown)} characters are shown; the figures are about ` +
      `all ${count(evaluation.count)}.`;
  const { stretches, shortest, whole, problem } = shown.copies;
  const covered = new Set(stretches.flatMap(([start, end]) =>
    Array.from({ length: end - start }, (_, i) => start + i)));
  $("copies-note").textContent =
    problem ? `Copies of the training text are not underlined, as it is not known: ${problem}.`
    : whole ? "All of what is shown stands in the text that the model was trained on, word for word: its loss " +
      "says little about new text."
    : `Underlined are stretches of ${shortest} or more characters that stand in the training text, word for ` +
      `word: ${percent(covered.size / nShown)} of what is shown. There, a confident model may just remember.`;
  if (problem) $("copied-legend").remove();
  $("attention-note").textContent = attention.count
    ? `Each line is read in a window that ends with it. The first ${count(attention.count)} lines can be opened.`
    : "There is no line to open.";
  const window = data.run.window;
  $("positions-note").textContent =
    "How much it helps to have read more of the window before the character that is predicted. " + (text.stride === window
      ? `The windows of ${window} characters do not overlap.`
      : `The windows of ${window} characters start every ${text.stride}, so that most characters are ` +
        `predicted from ${window - text.stride + 1} or more.`) + " The band is one standard error.";
  $("calibration-note").textContent =
    `When the model gives its most probable character 80%, it should come in 80% of the cases: on the dashed ` +
    `line. Below the line, the model is too sure. The expected calibration error, the mean distance from the ` +
    `line in ${calibration.counts.length} equal bins, is ${(100 * calibration.error).toFixed(2)}% ` +
    `(Guo et al. 2017). The grey columns are the shares of the characters.`;
}

function showReport() {
  const { run, text, shown } = data;
  const characters = Array.from(shown.text), vocabulary = Array.from(text.vocabulary);
  const losses = decodeArray(shown.losses, Float32Array);
  const { size, unit } = shown.distributions;
  const values = decodeArray(shown.distributions.values, Uint16Array);
  const ids = shown.distributions.ids && decodeArray(shown.distributions.ids, Uint32Array);
  const starts = new Set(shown.starts);
  const attention = attentionPanel(
    { lines: shown.attention.lines, values: decodeArray(shown.attention.values, Uint8Array) },
    characters, run.layers, run.heads);
  const spans = characters.map(characterElement);
  let current = -1, selected = null;

  /** Returns the most probable characters, as many as there are. */
  const distribution = (i) => Array.from({ length: size }, (_, k) => ({
    character: vocabulary[ids ? ids[i * size + k] : k],
    probability: Math.exp(-unit * values[i * size + k]),
  }));

  function showPrediction(i) {
    if (i === current || i < 0 || i >= characters.length) return;
    spans[current]?.classList.remove("current");
    spans[i].classList.add("current");
    current = i;
    const stretch = shown.copies.stretches.filter(([start, end]) => start <= i && i < end)
      .sort((a, b) => b[1] - b[0] - (a[1] - a[0]))[0];
    const copied = stretch ? `Part of ${count(stretch[1] - stretch[0])} characters that stand in the training ` +
      `text, at character ${count(stretch[2] + 1)}. ` : "";
    $("prediction-title").textContent = `Character ${count(i + 1)}: ${spokenCharacter(characters[i])}`;
    if (starts.has(i)) {
      $("prediction-text").textContent = "The first character is not predicted.";
      $("prediction-note").textContent = copied;
      $("distribution").replaceChildren();
      return;
    }
    const entries = distribution(i);
    const ordered = [...entries].sort((a, b) => b.probability - a.probability);
    const probability = Math.exp(-losses[i]);
    const rank = ordered.findIndex(({ character }) => character === characters[i]);
    const place = rank < 0 ? `not among the ${size} most probable` : `number ${rank + 1} of ${count(vocabulary.length)}`;
    const favourites = ordered.slice(0, 4)
      .map((each) => `${spokenCharacter(each.character)} ${percent(each.probability)}`).join(", ");
    $("prediction-text").textContent =
      `The model gave it ${percent(probability)} (${place}, loss ${losses[i].toFixed(2)}). Most probable: ${favourites}.`;
    $("prediction-note").textContent = copied + (ids
      ? `The bars are the ${size} most probable of ${count(vocabulary.length)} characters, ` +
        `${percent(entries.reduce((sum, each) => sum + each.probability, 0))} together; `
      : `The bars are all ${size} characters; `) + "the tallest fills the height. The blue one came.";
    showDistribution($("distribution"), entries, characters[i]);
  }

  function openLine() {
    selected?.classList.remove("selected");
    selected = spans[current].closest(".line");
    selected.classList.add("selected");
    const opened = attention.show(current) || attention.show(current - 1); // a newline: its line
    $("attention-title").textContent = opened ? "Attention of the chosen line"
      : "Attention (not stored for the line that you chose)";
  }

  function lineElements() {
    const nodes = [];
    let line = [];
    spans.forEach((span, i) => {
      if (starts.has(i) && i) {
        nodes.push(element("span", "line", "", ...line), element("span", "gap", "⋯"));
        line = [];
      }
      line.push(span);
      if (characters[i] === "\n" || i === spans.length - 1) {
        nodes.push(element("span", "line", "", ...line));
        line = [];
      }
      if (!starts.has(i)) colourBySurprise(span, losses[i]);
    });
    for (const [start, end] of shown.copies.stretches) {
      spans.slice(start, end).forEach((span) => span.classList.add("copied"));
    }
    return nodes;
  }

  function moveLine(step) {
    const box = spans[current].getBoundingClientRect();
    const lines = [...$("text").querySelectorAll(".line")];
    const next = lines[lines.indexOf(spans[current].closest(".line")) + step];
    if (!next) return;
    const distance = (span) => Math.abs(span.getBoundingClientRect().left - box.left);
    const nearest = [...next.children].reduce((a, b) => (distance(b) < distance(a) ? b : a));
    move(Number(nearest.dataset.index) - current);
  }

  function move(step) {
    showPrediction(Math.max(0, Math.min(current + step, spans.length - 1)));
    spans[current].scrollIntoView({ block: "nearest" });
  }

  $("text").append(...lineElements());
  $("text").addEventListener("pointerover", (event) => showPrediction(eventIndex(event) ?? current));
  $("text").addEventListener("click", (event) => {
    if (eventIndex(event) === null) return;
    showPrediction(eventIndex(event));
    openLine();
  });
  onCharacterKeys($("text"), { move, moveLine, enter: openLine });
  showHeader(data);
  showNotes(data, characters.length, attention);
  showPositions($("positions"), data.positions);
  showCalibration($("calibration"), data.calibration);
  showKinds($("kinds"), [
    { name: "By kind", groups: data.kinds }, { name: "By place in the word", groups: data.letters },
  ], data.evaluation.count, data.evaluation.loss);
  // Something to see at once: the most surprising character of the first lines that can be opened.
  const first = losses.slice(0, Math.min(400, attention.last || 400));
  showPrediction(first.reduce((best, loss, i) => (!starts.has(i) && loss > first[best] ? i : best), 1));
  openLine();
}

showReport();
