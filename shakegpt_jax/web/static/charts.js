"use strict";
// Charts as SVG, and tables of numbers.

const CHART = { width: 460, height: 300, left: 46, right: 12, top: 12, bottom: 42 };

function svgElement(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

/** Returns round numbers from 0 to about `largest`. */
function ticks(largest, most = 6) {
  const rough = largest / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  return Array.from({ length: Math.floor(largest / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** Returns an SVG with axes, and functions from values to coordinates. */
function chart({ xs, ys, xTicks, yTicks, xLabel, yLabel, format, description, height }) {
  const { width, left, right, top, bottom } = CHART;
  const full = height ?? CHART.height;
  const scale = ([low, high], begin, end) => (value) =>
    begin + ((value - low) / (high - low || 1)) * (end - begin);
  const x = scale(xs, left, width - right);
  const y = scale(ys, full - bottom, top);
  const svg = svgElement("svg", {
    class: "chart", viewBox: `0 0 ${width} ${full}`, role: "img", "aria-label": description,
  });
  const add = (tag, attributes, text) => svg.append(svgElement(tag, attributes, text));
  for (const value of yTicks) {
    add("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) });
    add("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value));
  }
  for (const value of xTicks) {
    add("line", { class: "axis", x1: x(value), x2: x(value), y1: full - bottom, y2: full - bottom + 4 });
    add("text", { x: x(value), y: full - bottom + 17, "text-anchor": "middle" }, String(+value.toFixed(6)));
  }
  add("text", { x: (left + width - right) / 2, y: full - 6, "text-anchor": "middle" }, xLabel);
  const middle = (top + full - bottom) / 2;
  const turned = { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` };
  add("text", turned, yLabel);
  return { svg, x, y, add };
}

/** Formats a mean loss with its standard error, which one character does not have. */
function withError(mean, error, count, digits) {
  return mean.toFixed(digits) + (count > 1 ? ` ± ${error.toFixed(digits)}` : "");
}

/** Shows loss over position as a line with a band of one standard error. */
function showPositions(container, { counts, means, errors }) {
  const points = means.map((mean, i) => ({ context: i + 1, mean, error: errors[i], count: counts[i] }))
    .filter(({ count }) => count);
  const last = points[points.length - 1];
  const largest = Math.max(...points.map(({ mean, error }) => mean + error));
  const yTicks = ticks(largest);
  const xTicks = ticks(means.length).map((tick) => Math.max(tick, 1));
  const { svg, x, y, add } = chart({
    xs: [1, means.length], ys: [0, Math.max(largest, yTicks[yTicks.length - 1]) * 1.02], xTicks, yTicks,
    xLabel: "characters that the model has read in the window", yLabel: "loss, nats per character",
    format: (value) => value.toFixed(largest < 1 ? 2 : 1),
    description: `Loss by position: ${points[0].mean.toFixed(2)} nats after ${points[0].context} ` +
      `characters, ${last.mean.toFixed(2)} after ${last.context}.`,
  });
  const path = (values) => values.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  const upper = points.map(({ context, mean, error }) => [context, mean + error]);
  const lower = points.map(({ context, mean, error }) => [context, mean - error]).reverse();
  add("polygon", { class: "band", points: path([...upper, ...lower]) });
  add("polyline", { class: "curve", points: path(points.map(({ context, mean }) => [context, mean])) });
  if (points.length < 3) {
    for (const { context, mean } of points) add("circle", { class: "dot", cx: x(context), cy: y(mean), r: 3 });
  }
  const rows = points.map(({ context, mean, error, count }) =>
    [context, withError(mean, error, count, 4), count.toLocaleString("en")]);
  container.append(svg, numbers(["characters read", "loss", "characters scored"], rows));
}

/** Shows a reliability diagram and, below it, how many characters each bin has. */
function showCalibration(container, { counts, confidences, accuracies, error }) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const bins = counts.map((count, i) => ({
    count, confidence: confidences[i], accuracy: accuracies[i],
    error: Math.sqrt((accuracies[i] * (1 - accuracies[i])) / Math.max(count, 1)),
  }));
  const used = bins.filter(({ count }) => count);
  const fifths = [0, 0.2, 0.4, 0.6, 0.8, 1];
  const { svg, x, y, add } = chart({
    xs: [0, 1], ys: [0, 1], xTicks: fifths, yTicks: fifths,
    xLabel: "probability of the most probable character", yLabel: "how often it came",
    format: (value) => value.toFixed(1),
    description: `Reliability diagram: expected calibration error ${(100 * error).toFixed(1)}%.`,
  });
  const most = Math.max(...counts);
  bins.forEach(({ count }, i) => {
    const height = (count / most) * 40;
    add("rect", {
      class: "column", x: x(i / bins.length) + 1, width: x(1 / bins.length) - x(0) - 2,
      y: y(0) - height, height,
    });
  });
  add("line", { class: "guide", x1: x(0), y1: y(0), x2: x(1), y2: y(1) });
  for (const { confidence, accuracy, error: spread } of used) {
    const [low, high] = [Math.max(0, accuracy - spread), Math.min(1, accuracy + spread)];
    add("line", { class: "whisker", x1: x(confidence), x2: x(confidence), y1: y(low), y2: y(high) });
    add("circle", { class: "dot", cx: x(confidence), cy: y(accuracy), r: 4 });
  }
  const rows = used.map(({ count, confidence, accuracy }) =>
    [percent(confidence), percent(accuracy), count.toLocaleString("en"), percent(count / total)]);
  container.append(svg, numbers(["mean probability", "how often right", "characters", "share"], rows));
}

/** Returns a closed element with a table of numbers. */
function numbers(columns, rows) {
  const head = element("tr", "", "", ...columns.map((name) => element("th", "", name)));
  const body = rows.map((row) => element("tr", "", "", ...row.map((cell) => element("td", "", String(cell)))));
  const table = element("table", "", "", element("thead", "", "", head), element("tbody", "", "", ...body));
  return element("details", "", "", element("summary", "", "Numbers"), element("div", "scroll", "", table));
}

/** Shows groups of characters with their losses as bars. */
function showKinds(container, groupings, total, loss) {
  const columns = ["", "loss, nats per character", "", "characters", "share of the text", "share of the loss"];
  const head = element("tr", "", "", ...columns.map((name, i) => element("th", i > 2 && i < 5 ? "optional" : "", name)));
  const largest = Math.max(...groupings.flatMap(({ groups }) => groups.means.map((m, i) => m + groups.errors[i])));
  const body = element("tbody");
  for (const { name, groups } of groupings) {
    const title = element("th", "", name);
    title.colSpan = columns.length;
    title.scope = "rowgroup";
    body.append(element("tr", "group-row", "", title));
    groups.names.forEach((kind, i) => {
      const [count, mean, error] = [groups.counts[i], groups.means[i], groups.errors[i]];
      if (!count) return;
      const fill = element("div", "fill");
      fill.style.width = `${(100 * mean) / largest}%`;
      const whisker = element("div", "error");
      whisker.style.left = `${(100 * Math.max(0, mean - error)) / largest}%`;
      whisker.style.width = `${(200 * error) / largest}%`;
      const header = element("th", "", kind);
      header.scope = "row";
      body.append(element("tr", "", "", header,
        element("td", "", withError(mean, error, count, 3)),
        element("td", "bar-cell", "", element("div", "meter", "", fill, whisker)),
        element("td", "optional", count.toLocaleString("en")),
        element("td", "optional", percent(count / total)),
        element("td", "", percent((count * mean) / (total * loss)))));
    });
  }
  const table = element("table", "", "", element("thead", "", "", head), body);
  container.append(element("div", "scroll", "", table));
}
