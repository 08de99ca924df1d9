"use strict";
// A text of coloured characters that grows, and the one that is pointed at.

/**
 * Shows a text in a container.
 * @param {HTMLElement} container
 * @param {{point(index, byMouse), choose(index), enter(), first()}} events the pointer or the
 *   keyboard is at a character; it was clicked; Enter was pressed; where the keys begin
 */
function textView(container, events) {
  let nodes = [], line = null, queue = [], frame = 0;
  let marked = -1, cursor = -1; // the one with a frame; where the arrow keys go on from
  let returning = false; // while the page, not the reader, moves the focus here

  function append({ character, logProb = null, className = "" }) {
    if (!line) container.append((line = element("span", "line")));
    const node = characterElement(character, nodes.length);
    if (character === "\n") node.textContent = "\n"; // so that it is copied; CSS shows the sign
    if (className) node.classList.add(className);
    if (logProb !== null) colourBySurprise(node, -logProb);
    line.append(node);
    nodes.push(node);
    if (character === "\n") line = null;
  }

  function flush() {
    cancelAnimationFrame(frame);
    frame = 0;
    queue.forEach(append);
    queue = [];
  }

  function mark(index) {
    nodes[marked]?.classList.remove("current");
    marked = index;
    if (index >= 0) cursor = index;
    nodes[marked]?.classList.add("current");
  }

  function goTo(index) {
    if (!nodes.length) return;
    const next = Math.max(0, Math.min(index, nodes.length - 1));
    nodes[next].scrollIntoView({ block: "nearest" });
    events.point(next);
  }

  /** Goes to the nearest character of the next or the previous line as it is broken here. */
  function moveLine(step) {
    const box = (i) => nodes[i].getBoundingClientRect();
    const start = box(Math.max(0, cursor));
    let best = null, top = null;
    for (let i = Math.max(0, cursor) + step; i >= 0 && i < nodes.length; i += step) {
      const { left, top: y } = box(i);
      if (Math.abs(y - start.top) < 2) continue;
      top ??= y;
      if (Math.abs(y - top) >= 2) break;
      if (!best || Math.abs(left - start.left) < best.distance) {
        best = { i, distance: Math.abs(left - start.left) };
      }
    }
    if (best) goTo(best.i);
  }

  onCharacterKeys(container, { move: (step) => goTo(cursor + step), moveLine, enter: () => events.enter() });
  container.addEventListener("focus", () => {
    if (!returning && container.matches(":focus-visible")) goTo(cursor < 0 ? events.first() : cursor);
  });
  container.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && eventIndex(event) !== null) events.point(eventIndex(event), true);
  });
  container.addEventListener("click", (event) => {
    if (eventIndex(event) !== null && getSelection().isCollapsed) events.choose(eventIndex(event));
  });

  return {
    mark,
    /** Moves the focus here; no chances are shown before a key is pressed. */
    focus() {
      returning = true;
      container.focus({ preventScroll: true });
      returning = false;
    },
    reveal: (index) => nodes[index]?.scrollIntoView({ block: "nearest" }),
    flush,
    get length() { return nodes.length + queue.length; },
    clear() {
      flush();
      container.replaceChildren();
      [nodes, line, marked, cursor] = [[], null, -1, -1];
    },
    /** Adds characters, all that come before the next frame at once. */
    append(entries) {
      queue.push(...entries);
      frame ||= requestAnimationFrame(flush);
    },
    /** Colours a character that is there already. */
    colour(index, logProb) {
      colourBySurprise(nodes[index], -logProb);
    },
    underline(stretches) {
      flush();
      for (const node of nodes) node.classList.remove("copied");
      for (const { start, end } of stretches) {
        nodes.slice(start, end).forEach((node) => node.classList.add("copied"));
      }
    },
  };
}
