// A text of coloured characters that may grow, and the one that is pointed at.

import { characterName, element } from "./common.js";

/** @import {Stretch} from "./common.js" */
/** @typedef {{character: string, level?: number, className?: string, gap?: boolean}} Shown gap: text is left out before it */
/**
 * @typedef {object} TextEvents
 * @property {(index: number, byMouse?: boolean) => void} point the pointer or the keyboard is at a character
 * @property {(index: number) => void} choose it was clicked
 * @property {() => void} enter Enter was pressed
 * @property {() => number} first where the keys begin
 */

const LEAST_PROBABILITY = 1e-3; // from here on the colour is full

/** Returns the level of colour, from 0 to 1, of a character with a log-probability. @param {number} logProb */
export const surprise = (logProb) => Math.min(1, logProb / Math.log(LEAST_PROBABILITY));

/** @param {HTMLElement} container @param {TextEvents} events */
export function textView(container, events) {
  /** @type {HTMLElement[]} */
  let nodes = [];
  /** @type {Shown[]} */
  let queue = [];
  let line = /** @type {HTMLElement | null} */ (null);
  let frame = 0;
  let marked = -1, cursor = -1; // the one with a frame; where the arrow keys start
  let returning = false; // while the page, not the reader, moves the focus here
  let pointer = ""; // where it was last

  /** @param {Shown} shown */
  function append({ character, level, className = "", gap = false }) {
    if (gap) {
      container.append(element("span", "gap", "⋯"));
      line = null;
    }
    if (!line) {
      line = element("span", "line");
      container.append(line);
    }
    const hidden = /^[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]$/u.test(character) && !"\t\n".includes(character);
    const node = element("span", `character ${className}`, hidden ? characterName(character) : character);
    if (hidden) node.classList.add("named");
    if (character === "\n") node.classList.add("newline"); // copied as it is; the styles show a sign
    node.dataset.index = String(nodes.length);
    nodes.push(node);
    if (level !== undefined) colour(nodes.length - 1, level);
    line.append(node);
    if (character === "\n") line = null;
  }

  /** @param {number} index @param {number} level */
  function colour(index, level) {
    nodes[index].style.setProperty("--level", level.toFixed(3));
  }

  function flush() {
    cancelAnimationFrame(frame);
    frame = 0;
    queue.forEach(append);
    queue = [];
  }

  /** @param {number} index */
  function goTo(index) {
    if (!nodes.length) return;
    const next = Math.max(0, Math.min(index, nodes.length - 1));
    nodes[next].scrollIntoView({ block: "nearest" });
    events.point(next);
  }

  const rowHeight = () => parseFloat(getComputedStyle(container).lineHeight);
  const page = () => Math.max(1, Math.floor(Math.min(container.clientHeight, innerHeight) / rowHeight()) - 1);

  /** Goes to the nearest character some rows on, as lines are broken on the screen. @param {number} rows */
  function goRows(rows) {
    const place = (/** @type {number} */ i) => {
      const { left, top, bottom } = nodes[i].getBoundingClientRect();
      return { x: left, y: (top + bottom) / 2 };
    };
    const begin = Math.max(0, cursor), start = place(begin), half = rowHeight() / 2;
    let best = begin, distance = 0, y = start.y, left = Math.abs(rows);
    for (let i = begin + Math.sign(rows); i >= 0 && i < nodes.length; i += Math.sign(rows)) {
      const found = place(i);
      if (Math.abs(found.y - y) > half) {
        if (!left--) break;
        [y, distance] = [found.y, Infinity];
      }
      if (Math.abs(found.x - start.x) < distance) [best, distance] = [i, Math.abs(found.x - start.x)];
    }
    goTo(best);
  }

  /** @param {number} step */
  function lineEnd(step) {
    let end = Math.max(0, cursor);
    while (nodes[end + step]?.parentElement === nodes[end].parentElement) end += step;
    return end;
  }

  /** @type {Record<string, (everything: boolean) => void>} */
  const keys = {
    ArrowLeft: () => goTo(cursor - 1),
    ArrowRight: () => goTo(cursor + 1),
    ArrowUp: () => goRows(-1),
    ArrowDown: () => goRows(1),
    PageUp: () => goRows(-page()),
    PageDown: () => goRows(page()),
    Home: (everything) => goTo(everything ? 0 : lineEnd(-1)),
    End: (everything) => goTo(everything ? nodes.length : lineEnd(1)),
    Enter: () => events.enter(),
  };
  container.addEventListener("keydown", (event) => {
    const { key, ctrlKey, altKey, metaKey } = event;
    if (!nodes.length || !(key in keys) || altKey || metaKey || (ctrlKey && key !== "Home" && key !== "End")) return;
    keys[key](ctrlKey);
    event.preventDefault();
  });
  container.addEventListener("focus", () => {
    if (!returning && container.matches(":focus-visible")) goTo(cursor < 0 ? events.first() : cursor);
  });

  /** @param {Event} event */
  function indexOf(event) {
    const node = /** @type {Element} */ (event.target).closest(".character");
    return node ? Number(/** @type {HTMLElement} */ (node).dataset.index) : -1;
  }

  /**
   * Points when the pointer moves, not when the text moves below it as the keyboard scrolls.
   * @param {PointerEvent} event
   */
  function followPointer(event) {
    const before = pointer, index = indexOf(event);
    pointer = `${event.screenX},${event.screenY}`;
    if (pointer !== before && event.pointerType !== "touch" && index >= 0 && index !== marked) events.point(index, true);
  }
  container.addEventListener("pointerover", followPointer);
  container.addEventListener("pointermove", followPointer);
  container.addEventListener("click", (event) => {
    if (indexOf(event) >= 0 && getSelection()?.isCollapsed) events.choose(indexOf(event));
  });

  /** @param {string} className @param {{start: number, end: number}[]} stretches */
  function setClass(className, stretches) {
    flush();
    for (const node of nodes) node.classList.remove(className);
    for (const { start, end } of stretches) {
      for (const node of nodes.slice(start, end)) node.classList.add(className);
    }
  }

  return {
    colour,
    flush,
    get length() { return nodes.length + queue.length; },
    /** @param {number} index of the character in the frame, or -1 */
    mark(index) {
      nodes[marked]?.classList.remove("current");
      marked = index;
      if (index >= 0) cursor = index;
      nodes[marked]?.classList.add("current");
    },
    /** Moves the focus here; no chances are shown before a key is pressed. */
    focus() {
      returning = true;
      container.focus({ preventScroll: true });
      returning = false;
    },
    /** @param {number} index */
    reveal: (index) => nodes[index]?.scrollIntoView({ block: "nearest" }),
    clear() {
      flush();
      container.replaceChildren();
      [nodes, line, marked, cursor] = [[], null, -1, -1];
    },
    /** Adds characters, all that come before the next frame at once. @param {Shown[]} shown */
    append(shown) {
      queue = queue.concat(shown);
      frame ||= requestAnimationFrame(flush);
    },
    /** @param {Stretch[]} stretches */
    underline: (stretches) => setClass("copied", stretches),
    /** @param {number} start @param {number} end */
    select: (start, end) => setClass("selected", [{ start, end }]),
  };
}
