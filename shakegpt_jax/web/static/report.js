"use strict";
// The report: reads the data of the page and fills it.

const data = JSON.parse($("data").textContent);

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function showHeader({ run, text, evaluation }) {
  $("title").textContent = `Looking inside ${run.name}`;
  $("summary").textContent =
    `A character-level GPT of ${count(run.parameters)} parameters (${plural(run.layers, "layer")} of ` +
    `${plural(run.heads, "head")}, window of ${run.window} characters) after ` +
    `${plural(run.step, "training step")}, evaluated on ${text.name}: ${plural(evaluation.count, "character")}` +
    (evaluation.count < text.characters - 1
      ? `, in ${plural(text.pieces, "piece")} spread over ${count(text.characters)}.` : ".");
  const figures = {
    "loss, nats/character": withError(evaluation.loss, evaluation.standard_error, evaluation.count, 4),
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
  const { stretches, shortest, whole, problem, source } = shown.copies;
  const covered = new Set(stretches.flatMap(({ start, end }) =>
    Array.from({ length: end - start }, (_, i) => start + i)));
  $("copies-note").textContent =
    problem ? `Copies of the training text are not underlined, as it is not known: ${problem}.`
    : whole ? "All of what is shown stands in the text that the model was trained on, word for word: its loss " +
      "says little about new text."
    : !covered.size ? `No stretch of ${shortest} or more characters stands in the training text, word for word.`
    : `Underlined are stretches of ${shortest} or more characters that stand in the training text, word for ` +
      `word: ${percent(covered.size / nShown)} of what is shown. There, a confident model may just remember.`;
  if (source && !problem) {
    $("copies-note").append(` The text of ${source}, from which the model started, has not been compared.`);
  }
  if (problem || !covered.size) $("copied-legend").remove();
  const window = data.run.window;
  const [kind, kinds] = attention.split ? ["line or piece", "lines or pieces"] : ["line", "lines"];
  $("attention-note").textContent = !attention.count ? "There is no line to open."
    : (attention.split ? `A line of more than ${window} characters is cut into pieces. ` : "") +
      `Each ${kind} is read in a window that ends with it. The first ` +
      `${attention.count === 1 ? kind : `${count(attention.count)} ${kinds}`} can be opened.`;
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
  const inLine = (i) => spans[i].closest(".line");
  let current = -1;

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
    const entries = distribution(i);
    const { ordered, rank } = rankEntries(entries, characters[i]);
    const probability = Math.exp(-losses[i]);
    const place = rank < 0 ? `not among the ${size} most probable` : `number ${rank + 1} of ${count(vocabulary.length)}`;
    const favourites = ordered.slice(0, 4).map(spokenEntry).join(", ");
    $("prediction-text").textContent =
      `The model gave it ${percent(probability)} (${place}, loss ${losses[i].toFixed(2)}). Most probable: ${favourites}.`;
    $("prediction-note").textContent = copied + (ids
      ? `The bars are the ${size} most probable of ${count(vocabulary.length)} characters, ` +
        `${percent(entries.reduce((sum, each) => sum + each.probability, 0))} together; `
      : `The bars are all ${size} characters; `) + "the tallest fills the height. The blue one came.";
    showDistribution($("distribution"), entries, characters[i]);
  }

  function openLine() {
    $("text").querySelectorAll(".selected").forEach((node) => node.classList.remove("selected"));
    const line = inLine(current);
    const last = line.children.length > 1 && characters[current] === "\n" ? current - 1 : current;
    const [start, end] = attention.show(last) ?? [last, last];
    const piece = end > start && !isWhole(start, end);
    (piece ? spans.slice(start, end) : [line]).forEach((node) => node.classList.add("selected"));
    $("attention-title").textContent = end === start ? "Attention"
      : `Attention of the chosen ${piece ? "piece of a long line" : "line"}`;
    if (end === start) {
      attention.clear(characters[last] === "\n" ? "The chosen line is empty." :
        "The attention of the chosen line is not stored.");
    }
  }

  /** Returns whether characters are a line without its newline. */
  function isWhole(start, end) {
    return (start === 0 || inLine(start - 1) !== inLine(start)) &&
      (end === spans.length || characters[end] === "\n" || inLine(end) !== inLine(start));
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
    for (const { start, end } of shown.copies.stretches) {
      spans.slice(start, end).forEach((span) => span.classList.add("copied"));
    }
    return nodes;
  }

  /** Moves by rows on the screen: a long line has several. */
  function moveRows(rows) {
    const box = spans[current].getBoundingClientRect();
    const y = box.top + box.height / 2 + rows * rowHeight();
    const lines = [...$("text").querySelectorAll(".line")];
    const next = rows > 0
      ? lines.find((line) => line.getBoundingClientRect().bottom > y) ?? lines[lines.length - 1]
      : lines.findLast((line) => line.getBoundingClientRect().top < y) ?? lines[0];
    const places = [...next.children].map((span) => ({ span, place: span.getBoundingClientRect() }));
    const distance = ({ place }) =>
      1e4 * Math.round(Math.abs(place.top + place.height / 2 - y) / rowHeight()) + Math.abs(place.left - box.left);
    const nearest = places.reduce((a, b) => (distance(b) < distance(a) ? b : a)).span;
    moveTo(Number(nearest.dataset.index));
  }

  const rowHeight = () => parseFloat(getComputedStyle($("text")).lineHeight);

  function movePage(direction) {
    moveRows(direction * Math.max(1, Math.floor($("text").clientHeight / rowHeight()) - 1));
  }

  function moveEnd(direction, everything) {
    const line = everything ? spans : inLine(current).children;
    moveTo(Number(line[direction < 0 ? 0 : line.length - 1].dataset.index));
  }

  function moveTo(index) {
    showPrediction(Math.max(0, Math.min(index, spans.length - 1)));
    spans[current].scrollIntoView({ block: "nearest" });
  }

  $("text").append(...lineElements());
  onCharacterPointed($("text"), showPrediction);
  $("text").addEventListener("click", (event) => {
    if (eventIndex(event) === null) return;
    showPrediction(eventIndex(event));
    openLine();
  });
  onCharacterKeys($("text"), {
    move: (step) => moveTo(current + step), moveLine: moveRows, moveEnd, movePage, enter: openLine,
  });
  showHeader(data);
  const split = shown.attention.lines.some(([start, end]) => !isWhole(start, end));
  showNotes(data, characters.length, { count: attention.count, split });
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
