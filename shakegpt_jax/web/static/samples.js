"use strict";
// Several samples of one prompt, side by side.

const N_SAMPLES = 4;
const pause = () => new Promise((done) => setTimeout(done, 300)); // until a place is free again

/**
 * Shows samples in a grid.
 * @param {HTMLElement} grid
 * @param {(version: Version) => void} adopt called with the sample that was chosen
 */
function samplesView(grid, adopt) {
  function card(version) {
    const text = element("div", "characters sample-text");
    text.tabIndex = 0;
    text.setAttribute("aria-label", `Text of seed ${version.settings.seed}`);
    text.setAttribute("role", "group");
    const button = element("button", "", "Choose");
    button.type = "button";
    button.setAttribute("aria-label", `Choose seed ${version.settings.seed}`);
    const head = element("div", "card-head", "", element("h3", "", `Seed ${version.settings.seed}`), button);
    const node = element("article", "sample", "", head, text);
    text.append(element("span", "prompt", version.settings.prompt));
    node.addEventListener("click", () => {
      if (version.tokens.length && getSelection().isCollapsed) adopt(version);
    });
    return { node, text };
  }

  return {
    /**
     * Generates the samples of a seed and those after it.
     * @returns {Promise<void>} rejects with the first error
     */
    async start(settings, length, generate, signal) {
      const versions = Array.from({ length: N_SAMPLES }, (_, i) =>
        makeVersion({ ...settings, seed: (settings.seed + i) % (limits.seed + 1) }, length));
      const cards = versions.map(card);
      const jobs = [];
      versions.forEach((version, i) => {
        const write = () => generate(version, (tokens) => {
          if (!grid.contains(cards[i].node)) grid.replaceChildren(...cards.map(({ node }) => node));
          cards[i].text.append(tokens.map((token) => token.character).join(""));
        }, signal);
        jobs.push(write().catch((error) => {
          if (!error.busy || !i) throw error;
          return jobs[i - 1].then(pause).then(write); // a small server takes them one after another
        }));
      });
      await Promise.all(jobs);
    },
  };
}
