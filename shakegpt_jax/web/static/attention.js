// The attention of one line: its text, and a map per head.

import { $, button, element, percent, spokenCharacter } from "./common.js";
import { textView } from "./text_view.js";

/** @typedef {[start: number, end: number, begin: number, offset: number]} Line its ends, the start of its window, its place in the values */

/**
 * Shows attention.
 * @param {Line[]} lines
 * @param {Uint8Array} values square roots of weights in 255ths: layers x heads x characters of the
 *   line x characters of the window, for each line
 * @param {string[]} characters of the shown text
 * @param {number} layers @param {number} heads
 */
export function attentionPanel(lines, values, characters, layers, heads) {
  const maps = $("heads"), nHead = layers * heads;
  /** @type {HTMLButtonElement[]} */
  const buttons = [];
  let chosen = /** @type {number | null} */ (null);
  let line = { start: 0, end: 0, begin: 0, offset: 0 }, row = 0;

  const view = textView($("attention-text"), {
    point(index, byMouse) {
      const pointed = index - (line.start - line.begin);
      if (!byMouse || pointed >= 0) explain(pointed);
    },
    choose: (index) => explain(index - (line.start - line.begin)),
    enter() {},
    first: () => line.start - line.begin + row,
  });

  const rows = () => line.end - line.start;
  const width = () => line.end - line.begin;
  /** @param {number} head */
  const headName = (head) => `layer ${Math.floor(head / heads) + 1}, head ${(head % heads) + 1}`;

  /** Returns the weights of the row, of one head or the mean of all. */
  function weights() {
    const used = chosen === null ? Array.from({ length: nHead }, (_, i) => i) : [chosen];
    return Array.from({ length: width() }, (_, key) => used.reduce((sum, head) =>
      sum + (values[line.offset + (head * rows() + row) * width() + key] / 255) ** 2, 0) / used.length);
  }

  function drawMaps() {
    const colour = getComputedStyle(maps).getPropertyValue("--weight-colour").trim();
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    buttons.forEach((each, head) => {
      const canvas = /** @type {HTMLCanvasElement} */ (each.querySelector("canvas"));
      [canvas.width, canvas.height] = [width(), rows()];
      const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
      const image = context.createImageData(width(), rows());
      for (let i = 0; i < rows() * width(); i++) {
        image.data.set([...rgb, values[line.offset + head * rows() * width() + i]], 4 * i);
      }
      context.putImageData(image, 0, 0);
    });
    maps.style.setProperty("--rows", String(rows()));
  }

  /** @param {number} query the row, or one beyond the ends of the line */
  function explain(query) {
    row = Math.max(0, Math.min(query, rows() - 1));
    const found = weights(), index = line.start + row;
    found.forEach((weight, key) => { view.colour(key, Math.sqrt(weight)); });
    view.mark(index - line.begin);
    const top = found.map((weight, key) => ({ weight, key })).sort((a, b) => b.weight - a.weight).slice(0, 3);
    const parts = top.filter(({ weight }) => weight >= 0.005).map(({ weight, key }) => {
      const distance = index - line.begin - key;
      const where = distance ? `${distance} before` : "itself";
      return `${percent(weight)} to ${spokenCharacter(characters[line.begin + key])} (${where})`;
    });
    const who = chosen === null ? `the mean of all ${nHead} heads` : headName(chosen);
    $("attention-summary").textContent =
      `To predict what follows ${spokenCharacter(characters[index])}, ${who} gives ${parts.join(", ")}.`;
    maps.style.setProperty("--row", String(row)); // the styles mark it in every map
  }

  /** @param {number} head */
  function headButton(head) {
    const canvas = element("canvas");
    const node = button(`head ${(head % heads) + 1}`, "map", () => {
      chosen = chosen === head ? null : head;
      for (const [i, each] of buttons.entries()) each.setAttribute("aria-pressed", String(i === chosen));
      explain(row);
    });
    node.append(element("span", "map-frame", "", canvas));
    node.setAttribute("aria-pressed", "false");
    node.setAttribute("aria-label", `Attention of ${headName(head)}`);
    canvas.addEventListener("pointermove", (event) => {
      const { top, height } = canvas.getBoundingClientRect();
      const pointed = Math.floor(((event.clientY - top) / height) * rows());
      if (pointed !== row) explain(pointed);
    });
    return node;
  }

  /** @param {boolean} shown */
  function display(shown) {
    $("attention-text").hidden = maps.hidden = !shown;
  }

  for (let layer = 0; layer < layers; layer++) {
    const some = Array.from({ length: heads }, (_, i) => headButton(layer * heads + i));
    buttons.push(...some);
    maps.append(element("div", "layer", "", element("h3", "", `Layer ${layer + 1}`), element("div", "maps", "", ...some)));
  }
  maps.style.setProperty("--map-width", `${Math.max(6.5, 32 / heads)}rem`);
  display(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => rows() && drawMaps());

  return {
    /**
     * Shows the line that has a character, and explains it; returns its ends, or null if it is not stored.
     * @param {number} index
     */
    show(index) {
      const found = lines.find(([start, end]) => start <= index && index < end);
      if (!found) return null;
      const [start, end, begin, offset] = found;
      if (!rows() || line.start !== start) {
        line = { start, end, begin, offset };
        view.clear();
        view.append(characters.slice(begin, end).map((character, key) =>
          ({ character, className: begin + key < start ? "context" : "" })));
        view.flush();
        drawMaps();
        display(true);
      }
      explain(index - start);
      return { start, end };
    },
    /** Shows no line, and why. @param {string} reason */
    clear(reason) {
      line = { start: 0, end: 0, begin: 0, offset: 0 };
      display(false);
      $("attention-summary").textContent = reason;
    },
  };
}
