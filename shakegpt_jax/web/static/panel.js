"use strict";
// The chances of one character: the bars, the likeliest as buttons, and where its text stands.

const N_FAVOURITES = 5;

/** Returns 1st, 2nd, 3rd, ... */
function ordinal(n) {
  const ending = { one: "st", two: "nd", few: "rd", other: "th" };
  return count(n) + ending[new Intl.PluralRules("en", { type: "ordinal" }).select(n)];
}

/**
 * Shows the chances of one character at a time.
 * @param {string[]} vocabulary
 * @param {(character: string) => void} choose called for a bar or button that is not what came
 * @param {() => void} close called for Escape and the close button
 */
function distributionPanel(vocabulary, choose, close) {
  const list = $("distribution"), favourites = $("favourites");
  let note = "";

  function focusBar(index) {
    const items = [...list.children];
    const next = items[Math.max(0, Math.min(index, items.length - 1))];
    if (!next) return;
    items.forEach((item) => { item.tabIndex = item === next ? 0 : -1; });
    next.focus();
  }

  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) choose(item.dataset.character);
  });
  list.addEventListener("keydown", (event) => {
    const item = event.target.closest("li");
    const index = [...list.children].indexOf(item);
    if (event.key === "ArrowRight" || event.key === "ArrowDown") focusBar(index + 1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") focusBar(index - 1);
    else if (event.key === "Home") focusBar(0);
    else if (event.key === "End") focusBar(list.children.length - 1);
    else if (event.key === "Enter" || event.key === " ") choose(item.dataset.character);
    else return;
    event.preventDefault();
  });
  favourites.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(button.dataset.character);
  });
  for (const name of ["pointerover", "focusin"]) list.addEventListener(name, showOneBar);
  for (const name of ["pointerleave", "focusout"]) {
    list.addEventListener(name, () => { $("panel-note").textContent = note; });
  }
  $("panel-close").addEventListener("click", close);

  function showOneBar(event) {
    const item = event.target.closest("li");
    if (item) $("panel-note").textContent = `${item.getAttribute("aria-label")}. ${note}`;
  }

  function showFavourites(ordered, actual) {
    favourites.replaceChildren(...ordered.slice(0, N_FAVOURITES).map((entry) => {
      const { character, probability } = entry;
      const button = element("button", character === actual ? "favourite actual" : "favourite", "",
        element("b", "", characterName(character)), element("span", "", percent(probability)));
      button.type = "button";
      button.dataset.character = character;
      button.setAttribute("aria-label", spokenEntry(entry));
      return button;
    }));
  }

  function showBars({ character, logProbs }) {
    const entries = Array.from(logProbs.ids, (id, i) =>
      ({ character: vocabulary[id], probability: Math.exp(logProbs.values[i]) }))
      .filter((entry) => entry.probability > 0);
    const { ordered, rank } = rankEntries(entries, character);
    $("panel-text").textContent = rank < 0 ? ": hardly any chance"
      : `had a chance of ${percent(ordered[rank].probability)}, ${ordinal(rank + 1)} of ${count(vocabulary.length)}`;
    showFavourites(ordered, character);
    showDistribution(list, entries, character);
    [...list.children].forEach((item, i) => {
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", item.dataset.character === character);
      item.tabIndex = item.dataset.character === character || (rank < 0 && !i) ? 0 : -1;
    });
  }

  function showCopied(stretch) {
    $("copied").hidden = !stretch;
    if (!stretch) return;
    $("copied-text").textContent = `Part of ${count(stretch.text.length)} characters that stand in the training ` +
      `text, from character ${count(stretch.place + 1)} on:`;
    const start = stretch.place > Array.from(stretch.before).length ? "…" : "";
    $("copied-place").replaceChildren(start + stretch.before, element("mark", "", stretch.text.join("")),
      stretch.after + "…");
  }

  return {
    /**
     * @param {{title: string, character: string, logProbs: LogProbs | null, note: string,
     *   stretch: object | undefined}} shown log-probabilities that are null are not known
     */
    show(shown) {
      $("panel-empty").hidden = true;
      $("panel-filled").hidden = false;
      $("panel-title").textContent = shown.title;
      const known = shown.logProbs?.ids.length ?? vocabulary.length;
      note = shown.note + (known < vocabulary.length
        ? ` Shown are the ${count(known)} most probable of ${count(vocabulary.length)} characters.` : "");
      $("panel-note").textContent = note;
      for (const id of ["favourites", "distribution"]) $(id).hidden = !shown.logProbs;
      if (shown.logProbs) showBars(shown);
      else $("panel-text").textContent = "";
      showCopied(shown.stretch);
    },
    /** Brings the place in the training text into sight. */
    revealCopied: () => $("copied").scrollIntoView({ block: "nearest" }),
    focus() {
      const item = list.querySelector('[tabindex="0"]');
      if (!list.hidden) focusBar([...list.children].indexOf(item));
    },
    clear() {
      $("panel-empty").hidden = false;
      $("panel-filled").hidden = true;
    },
  };
}
