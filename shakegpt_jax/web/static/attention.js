"use strict";
// The attention of one line: its text, and a map per head.

/**
 * Shows attention.
 * @param {object} data `lines` of [start, end, window start, offset] and `values`, square roots of
 *   weights in 255ths: layers x heads x characters of the line x characters of the window
 * @param {string[]} characters of the shown text
 */
function attentionPanel({ lines, values }, characters, layers, heads) {
  const textNode = document.getElementById("attention-text");
  const summary = document.getElementById("attention-summary");
  const maps = document.getElementById("heads");
  let line = null, row = 0, chosen = null, spans = [], buttons = [];

  const nHead = layers * heads;
  const headName = (i) => `layer ${Math.floor(i / heads) + 1}, head ${(i % heads) + 1}`;
  const width = () => line.end - line.begin;
  const weight = (head, query, key) => {
    const at = line.offset + (head * (line.end - line.start) + query) * width() + key;
    return (values[at] / 255) ** 2;
  };

  /** Returns the weights of a character of the line, of one head or the mean of all. */
  function weights(query) {
    const used = chosen === null ? Array.from({ length: nHead }, (_, i) => i) : [chosen];
    return Array.from({ length: width() }, (_, key) =>
      used.reduce((sum, head) => sum + weight(head, query, key), 0) / used.length);
  }

  function drawMaps() {
    const colour = getComputedStyle(textNode).getPropertyValue("--weight-colour").trim();
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    buttons.forEach((button, head) => drawMap(button.querySelector("canvas"), head, rgb));
    maps.style.setProperty("--rows", line.end - line.start);
  }

  function drawMap(canvas, head, rgb) {
    const rows = line.end - line.start;
    canvas.width = width();
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, rows);
    for (let i = 0; i < rows * canvas.width; i++) {
      const value = values[line.offset + head * rows * canvas.width + i];
      image.data.set([...rgb, value], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  function explain(query) {
    row = Math.max(0, Math.min(query, line.end - line.start - 1));
    const found = weights(row);
    const index = line.start + row;
    spans.forEach((span, key) => {
      span.style.setProperty("--level", Math.sqrt(found[key] ?? 0).toFixed(3));
      span.classList.toggle("current", line.begin + key === index);
    });
    const top = found.map((value, key) => ({ value, key })).sort((a, b) => b.value - a.value).slice(0, 3);
    const parts = top.filter(({ value }) => value >= 0.005).map(({ value, key }) => {
      const distance = index - line.begin - key;
      const where = distance ? `${distance} before` : "itself";
      return `${percent(value)} to ${spokenCharacter(characters[line.begin + key])} (${where})`;
    });
    const who = chosen === null ? `the mean of all ${nHead} heads` : headName(chosen);
    summary.textContent = `To predict what follows ${spokenCharacter(characters[index])}, ${who} gives ${parts.join(", ")}.`;
    maps.style.setProperty("--row", row); // the styles mark it in every map
  }

  function choose(head) {
    chosen = chosen === head ? null : head;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    explain(row);
  }

  function headButton(head) {
    const button = element("button", "map", `head ${(head % heads) + 1}`,
      element("span", "map-frame", "", element("canvas")));
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", `Attention of ${headName(head)}`);
    button.addEventListener("click", () => choose(head));
    button.querySelector("canvas").addEventListener("pointermove", (event) => {
      const box = event.target.getBoundingClientRect();
      const pointed = Math.floor(((event.clientY - box.top) / box.height) * (line.end - line.start));
      if (pointed !== row) explain(pointed);
    });
    return button;
  }

  /** Shows the line that contains a character, and explains it; returns its ends, or null if it is not stored. */
  function show(index) {
    const found = lines.find(([start, end]) => start <= index && index < end);
    if (!found) return null;
    const [start, end, begin, offset] = found;
    if (line?.start !== start) {
      textNode.hidden = maps.hidden = false;
      line = { start, end, begin, offset };
      spans = characters.slice(begin, end).map((each, key) => {
        const span = characterElement(each, begin + key);
        if (begin + key < start) span.classList.add("context");
        return span;
      });
      textNode.replaceChildren(element("span", "line", "", ...spans.flatMap((span) =>
        span.classList.contains("newline") ? [span, "\n"] : [span])));
      if (!buttons.length) build();
      drawMaps();
    }
    explain(index - start);
    return [start, end];
  }

  /** Shows no line, and why. */
  function clear(reason) {
    line = null;
    textNode.hidden = maps.hidden = true;
    summary.textContent = reason;
  }

  function build() {
    maps.style.setProperty("--map-width", `${Math.max(6.5, 32 / heads)}rem`);
    for (let layer = 0; layer < layers; layer++) {
      const some = Array.from({ length: heads }, (_, i) => headButton(layer * heads + i));
      buttons.push(...some);
      maps.append(element("div", "layer", "", element("h3", "", `Layer ${layer + 1}`),
        element("div", "maps", "", ...some)));
    }
  }

  const point = (index) => index >= line.start && explain(index - line.start);
  onCharacterPointed(textNode, point);
  textNode.addEventListener("click", (event) => eventIndex(event) !== null && point(eventIndex(event)));
  onCharacterKeys(textNode, {
    move: (step) => explain(row + step),
    moveEnd: (direction) => explain(direction * line.end),
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => line && drawMaps());
  return { show, clear, last: lines.length ? lines[lines.length - 1][1] : 0, count: lines.length };
}
