// Several samples of one prompt, side by side.

import { button, element } from "./common.js";
import { limits } from "./facts.js";
import { makeVersion } from "./tree.js";

/** @import {Token} from "./facts.js" */
/** @import {Settings, Version} from "./tree.js" */

export const N_SAMPLES = 4;

const untilAPlaceIsFree = () => new Promise((done) => setTimeout(done, 300));

/**
 * Shows samples in a grid.
 * @param {HTMLElement} grid
 * @param {(version: Version) => void} adopt called with the sample that was chosen
 */
export function samplesView(grid, adopt) {
  /** @param {Version} version */
  function card(version) {
    const { seed, prompt } = version.settings;
    const text = element("div", "characters sample-text", "", element("span", "prompt", prompt));
    text.tabIndex = 0;
    text.setAttribute("aria-label", `Text of seed ${seed}`);
    text.setAttribute("role", "group");
    const choose = button("Choose");
    choose.setAttribute("aria-label", `Choose seed ${seed}`);
    const node = element("article", "sample", "",
      element("div", "card-head", "", element("h3", "", `Seed ${seed}`), choose), text);
    node.addEventListener("click", () => {
      if (version.tokens.length && getSelection()?.isCollapsed) adopt(version);
    });
    return { node, text };
  }

  return {
    /**
     * Generates the samples of a seed and those after it; rejects with the first error.
     * @param {Settings} settings @param {number} length
     * @param {(version: Version, onTokens: (tokens: Token[]) => void) => Promise<void>} generate
     */
    async start(settings, length, generate) {
      const versions = Array.from({ length: N_SAMPLES }, (_, i) =>
        makeVersion({ ...settings, seed: (settings.seed + i) % (limits.seed + 1) }, length));
      const cards = versions.map(card);
      /** @type {Promise<void>[]} */
      const jobs = [];
      versions.forEach((version, i) => {
        const write = () => generate(version, (tokens) => {
          if (!grid.contains(cards[i].node)) grid.replaceChildren(...cards.map(({ node }) => node));
          cards[i].text.append(tokens.map((token) => token.character).join(""));
        });
        jobs.push(write().catch((error) => {
          if (!error.busy || !i) throw error;
          return jobs[i - 1].then(untilAPlaceIsFree).then(write); // a small server takes them one after another
        }));
      });
      await Promise.all(jobs);
    },
  };
}
