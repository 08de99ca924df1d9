// The chances of one character: the bars, the likeliest as buttons, and where its text stands.

import { $, button, characterName, count, element, percent } from "./common.js";
import { rankEntries, showDistribution, spokenEntry } from "./distribution.js";
import { vocabulary } from "./facts.js";

/** @import {Entry} from "./common.js" */
/** @import {Copy, LogProbs} from "./facts.js" */
/** @typedef {{title: string, character: string, logProbs: LogProbs | null, note: string, copy?: Copy & {text: string[]}}} Chances null: not known */

const N_FAVOURITES = 5;

/** Returns 1st, 2nd, 3rd, ... @param {number} n */
function ordinal(n) {
  /** @type {Record<string, string>} */
  const endings = { one: "st", two: "nd", few: "rd", other: "th" };
  return count(n) + endings[new Intl.PluralRules("en", { type: "ordinal" }).select(n)];
}

/**
 * Shows the chances of one character at a time.
 * @param {(character: string) => void} choose called for a bar or button that is not what came
 * @param {() => void} close called for the close button
 */
export function distributionPanel(choose, close) {
  const list = $("distribution");
  let note = "";

  const bars = () => /** @type {HTMLElement[]} */ ([...list.children]);
  /** @param {Event} event */
  const barOf = (event) => /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("li"));

  /** @param {number} index */
  function focusBar(index) {
    const items = bars(), next = items[Math.max(0, Math.min(index, items.length - 1))];
    for (const item of items) item.tabIndex = item === next ? 0 : -1;
    next?.focus();
  }

  list.addEventListener("click", (event) => {
    const bar = barOf(event);
    if (bar) choose(bar.dataset.character ?? "");
  });
  list.addEventListener("keydown", (event) => {
    const bar = barOf(event);
    if (!bar) return;
    const index = bars().indexOf(bar), { key } = event;
    if (key === "ArrowRight" || key === "ArrowDown") focusBar(index + 1);
    else if (key === "ArrowLeft" || key === "ArrowUp") focusBar(index - 1);
    else if (key === "Home") focusBar(0);
    else if (key === "End") focusBar(bars().length - 1);
    else if (key === "Enter" || key === " ") choose(bar.dataset.character ?? "");
    else return;
    event.preventDefault();
  });
  for (const name of ["pointerover", "focusin"]) {
    list.addEventListener(name, (event) => {
      const bar = barOf(event);
      if (bar) $("panel-note").textContent = `${bar.getAttribute("aria-label")}. ${note}`;
    });
  }
  for (const name of ["pointerleave", "focusout"]) {
    list.addEventListener(name, () => { $("panel-note").textContent = note; });
  }
  $("panel-close").addEventListener("click", close);

  /** @param {Entry} entry @param {string} actual */
  function favourite(entry, actual) {
    const { character, probability } = entry;
    const node = button("", character === actual ? "favourite actual" : "favourite", () => choose(character));
    node.append(element("b", "", characterName(character)), element("span", "", percent(probability)));
    node.dataset.character = character;
    node.setAttribute("aria-label", spokenEntry(entry));
    return node;
  }

  /** @param {string} actual @param {LogProbs} logProbs */
  function showBars(actual, { ids, values }) {
    const entries = Array.from(ids, (id, i) => ({ character: vocabulary[id], probability: Math.exp(values[i]) }))
      .filter((entry) => entry.probability > 0);
    const { ordered, rank } = rankEntries(entries, actual);
    $("panel-text").textContent = rank < 0 ? ": hardly any chance"
      : `had a chance of ${percent(ordered[rank].probability)}, ${ordinal(rank + 1)} of ${count(vocabulary.length)}`;
    $("favourites").replaceChildren(...ordered.slice(0, N_FAVOURITES).map((entry) => favourite(entry, actual)));
    showDistribution(list, entries, actual);
    bars().forEach((bar, i) => {
      bar.setAttribute("role", "option");
      bar.setAttribute("aria-selected", String(bar.dataset.character === actual));
      bar.tabIndex = bar.dataset.character === actual || (rank < 0 && !i) ? 0 : -1;
    });
  }

  /** @param {Copy & {text: string[]}} copy */
  function showCopy({ text, place, before, after }) {
    $("copied-text").textContent = `Part of ${count(text.length)} characters that stand in the training ` +
      `text, from character ${count(place + 1)} on:`;
    const start = place > Array.from(before).length ? "…" : "";
    $("copied-place").replaceChildren(start + before, element("mark", "", text.join("")), `${after}…`);
  }

  return {
    /** @param {Chances} chances */
    show({ title, character, logProbs, note: about, copy }) {
      $("panel-empty").hidden = true;
      $("panel-filled").hidden = false;
      $("panel-title").textContent = title;
      const known = logProbs?.ids.length ?? vocabulary.length;
      note = about + (known < vocabulary.length
        ? ` Only the ${count(known)} most probable of ${count(vocabulary.length)} characters are shown.` : "");
      $("panel-note").textContent = note;
      $("favourites").hidden = list.hidden = !logProbs;
      if (logProbs) showBars(character, logProbs);
      else $("panel-text").textContent = "";
      $("copied").hidden = !copy;
      if (copy) showCopy(copy);
    },
    /** Brings the place in the training text into sight. */
    revealCopied: () => $("copied").scrollIntoView({ block: "nearest" }),
    focus() {
      if (!list.hidden) focusBar(bars().findIndex((bar) => bar.tabIndex === 0));
    },
    clear() {
      $("panel-empty").hidden = false;
      $("panel-filled").hidden = true;
    },
  };
}
