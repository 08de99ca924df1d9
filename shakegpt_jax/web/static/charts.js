// Charts as SVG, and tables of numbers.

import { count, element, percent } from "./common.js";

/** @typedef {{counts: number[], means: number[], errors: number[]}} Groups mean losses in nats */
/** @typedef {Groups & {names: string[]}} NamedGroups */
/** @typedef {{counts: number[], confidences: number[], accuracies: number[], error: number}} Calibration */

const WIDTH = 460, HEIGHT = 300, LEFT = 46, RIGHT = 12, TOP = 12, BOTTOM = 42;

/** @param {string} tag @param {Record<string, string | number>} attributes */
function svgElement(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.textContent = text;
  return node;
}

/** Returns round numbers from 0 to about `largest`. @param {number} largest */
function ticks(largest, most = 6) {
  const rough = largest / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.floor(largest / step + 1e-9) + 1 }, (_, i) => i * step);
}

/**
 * Returns an SVG with axes, functions from values to coordinates, and one that adds an element.
 * @param {{xs: [number, number], ys: [number, number], xTicks: number[], yTicks: number[], xLabel: string,
 *   yLabel: string, digits: number, description: string}} axes
 */
function chart({ xs, ys, xTicks, yTicks, xLabel, yLabel, digits, description }) {
  /** @param {[number, number]} range @param {number} begin @param {number} end */
  const scale = ([low, high], begin, end) => (/** @type {number} */ value) =>
    begin + ((value - low) / (high - low || 1)) * (end - begin);
  const x = scale(xs, LEFT, WIDTH - RIGHT), y = scale(ys, HEIGHT - BOTTOM, TOP);
  const svg = svgElement("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": description,
  });
  /** @param {string} tag @param {Record<string, string | number>} attributes @param {string} [text] */
  const add = (tag, attributes, text) => svg.append(svgElement(tag, attributes, text));
  for (const value of yTicks) {
    add("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
    add("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits));
  }
  for (const value of xTicks) {
    add("line", { class: "axis", x1: x(value), x2: x(value), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 });
    add("text", { x: x(value), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, String(+value.toFixed(6)));
  }
  add("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xLabel);
  const middle = (TOP + HEIGHT - BOTTOM) / 2;
  add("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, yLabel);
  return { svg, x, y, add };
}

/**
 * Formats a mean loss with its standard error, which one character does not have: null.
 * @param {number} mean @param {number | null} error @param {number} digits
 */
export function withError(mean, error, digits) {
  return mean.toFixed(digits) + (error === null ? "" : ` ± ${error.toFixed(digits)}`);
}

/**
 * Shows loss over position as a line with a band of one standard error.
 * @param {HTMLElement} container @param {Groups} groups
 */
export function showPositions(container, { counts, means, errors }) {
  const points = means.map((mean, i) => ({ read: i + 1, mean, error: errors[i], counted: counts[i] }))
    .filter(({ counted }) => counted);
  const first = points[0], last = points[points.length - 1];
  const largest = Math.max(...points.map(({ mean, error }) => mean + error));
  const yTicks = ticks(largest);
  const { svg, x, y, add } = chart({
    xs: [1, means.length], ys: [0, Math.max(largest, yTicks[yTicks.length - 1]) * 1.02],
    xTicks: ticks(means.length).map((tick) => Math.max(tick, 1)), yTicks,
    xLabel: "characters that the model has read in the window", yLabel: "loss, nats per character",
    digits: largest < 1 ? 2 : 1,
    description: `Loss by position: ${first.mean.toFixed(2)} nats after ${first.read} characters, ` +
      `${last.mean.toFixed(2)} after ${last.read}.`,
  });
  /** @param {[number, number][]} places */
  const path = (places) => places.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  /** @param {number} sign @returns {[number, number][]} */
  const border = (sign) => points.map(({ read, mean, error }) => [read, mean + sign * error]);
  add("polygon", { class: "band", points: path([...border(1), ...border(-1).reverse()]) });
  add("polyline", { class: "curve", points: path(border(0)) });
  if (points.length < 3) {
    for (const { read, mean } of points) add("circle", { class: "dot", cx: x(read), cy: y(mean), r: 3 });
  }
  const rows = points.map(({ read, mean, error, counted }) =>
    [String(read), withError(mean, counted > 1 ? error : null, 4), count(counted)]);
  container.append(svg, numbers(["characters read", "loss", "characters scored"], rows));
}

/**
 * Shows a reliability diagram and, below it, how many characters each bin has.
 * @param {HTMLElement} container @param {Calibration} calibration
 */
export function showCalibration(container, { counts, confidences, accuracies, error }) {
  const total = counts.reduce((sum, counted) => sum + counted, 0), most = Math.max(...counts);
  const fifths = [0, 0.2, 0.4, 0.6, 0.8, 1];
  const { svg, x, y, add } = chart({
    xs: [0, 1], ys: [0, 1], xTicks: fifths, yTicks: fifths, digits: 1,
    xLabel: "probability of the most probable character", yLabel: "how often it came",
    description: `Reliability diagram: expected calibration error ${(100 * error).toFixed(1)}%.`,
  });
  counts.forEach((counted, i) => {
    const height = (counted / most) * 40;
    add("rect", {
      class: "column", x: x(i / counts.length) + 1, width: x(1 / counts.length) - x(0) - 2, y: y(0) - height, height,
    });
  });
  add("line", { class: "guide", x1: x(0), y1: y(0), x2: x(1), y2: y(1) });
  /** @type {string[][]} */
  const rows = [];
  counts.forEach((counted, i) => {
    if (!counted) return;
    const [confidence, accuracy] = [confidences[i], accuracies[i]];
    const spread = Math.sqrt((accuracy * (1 - accuracy)) / counted);
    const [low, high] = [Math.max(0, accuracy - spread), Math.min(1, accuracy + spread)];
    add("line", { class: "whisker", x1: x(confidence), x2: x(confidence), y1: y(low), y2: y(high) });
    add("circle", { class: "dot", cx: x(confidence), cy: y(accuracy), r: 4 });
    rows.push([percent(confidence), percent(accuracy), count(counted), percent(counted / total)]);
  });
  container.append(svg, numbers(["mean probability", "how often right", "characters", "share"], rows));
}

/** Returns a closed element with a table of numbers. @param {string[]} columns @param {string[][]} rows */
function numbers(columns, rows) {
  const head = element("tr", "", "", ...columns.map((name) => element("th", "", name)));
  const body = rows.map((row) => element("tr", "", "", ...row.map((cell) => element("td", "", cell))));
  const table = element("table", "", "", element("thead", "", "", head), element("tbody", "", "", ...body));
  return element("details", "", "", element("summary", "", "Numbers"), element("div", "scroll", "", table));
}

/**
 * Shows the losses of groups of characters as bars, by the name of each grouping.
 * @param {HTMLElement} container @param {Record<string, NamedGroups>} groupings
 * @param {{count: number, loss: number}} whole
 */
export function showKinds(container, groupings, whole) {
  const columns = ["", "loss, nats per character", "", "characters", "share of the text", "share of the loss"];
  const head = element("tr", "", "", ...columns.map((name, i) => element("th", i > 2 && i < 5 ? "optional" : "", name)));
  const largest = Math.max(...Object.values(groupings).flatMap(({ means, errors }) => means.map((m, i) => m + errors[i])));
  /** @param {number} loss */
  const share = (loss) => `${(100 * loss) / largest}%`;
  const body = element("tbody");
  for (const [grouping, { names, counts, means, errors }] of Object.entries(groupings)) {
    const title = element("th", "", grouping);
    title.colSpan = columns.length;
    title.scope = "rowgroup";
    body.append(element("tr", "group-row", "", title));
    names.forEach((name, i) => {
      const [counted, mean, error] = [counts[i], means[i], errors[i]];
      if (!counted) return;
      const fill = element("div", "fill"), whisker = element("div", "error"), header = element("th", "", name);
      fill.style.width = share(mean);
      whisker.style.left = share(Math.max(0, mean - error));
      whisker.style.width = share(2 * error);
      header.scope = "row";
      body.append(element("tr", "", "", header,
        element("td", "", withError(mean, counted > 1 ? error : null, 3)),
        element("td", "bar-cell", "", element("div", "meter", "", fill, whisker)),
        element("td", "optional", count(counted)),
        element("td", "optional", percent(counted / whole.count)),
        element("td", "", percent((counted * mean) / (whole.count * whole.loss)))));
    });
  }
  const table = element("table", "", "", element("thead", "", "", head), body);
  container.append(element("div", "scroll", "", table));
}
