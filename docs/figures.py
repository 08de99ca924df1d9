"""Draw the figures of the docs as SVG: python docs/figures.py FIGURE SOURCE [SOURCE ...].

Figures and their sources:
  parameters   run folders
  overfitting  run folders
  sampling     files of shakegpt benchmark --json
  drafts       run folders
  attention    a run folder
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import shakegpt_jax
from shakegpt_jax.reporting.metrics import read_metrics

FOLDER = Path(__file__).parent
INK, PAPER, FAINT = "#1f2328", "#fffffe", "#d0d7de"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", FAINT: "#3d444d"}
COLORS = ("#2a7fc1", "#d55e00", "#009e73", "#b95f93", "#8a8f98", "#b58900")
STYLE = {"font.size": 12, "svg.hashsalt": "", "figure.facecolor": PAPER, "axes.facecolor": PAPER}
STYLE |= {"axes.prop_cycle": matplotlib.cycler(color=COLORS)}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK)
STYLE |= dict.fromkeys(("xtick.color", "ytick.color"), INK)
TEMPERATURES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
NATS = "validation loss, nats per character"
LINE = "LUCENTIO:\nI thank thee, gentle widow, for thy love."  # in no text that is trained on


def new_axes(x: str, y: str, height: float = 4.2) -> Any:
    """Return the axes of a new figure of 800 pixels."""
    axes = Figure(figsize=(8, height), layout="constrained").subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _validation_losses(run: Path) -> list[tuple[int, float]]:
    return [(row.step, row.evaluation.loss) for row in read_metrics(run) if row.evaluation]


def parameters(sources: list[Path]) -> Any:
    """Draw the best validation loss against the number of parameters, a line for each depth."""
    axes = new_axes("parameters", NATS)
    depths: dict[int, list[tuple[int, float, int]]] = {}
    for source in sources:
        lm, best = shakegpt_jax.load(source), min(y for _, y in _validation_losses(source))
        sizes = lm.config.model
        depths.setdefault(sizes.n_layer, []).append((lm.n_params, best, sizes.n_embd))
    for n_layer, points in sorted(depths.items()):
        x, y, widths = np.transpose(sorted(points))
        (line,) = axes.plot(x, y, "o-", markersize=5, label=f"{n_layer} layers")
        beside: dict[str, Any] = {"textcoords": "offset points", "color": line.get_color()}
        for *at, width in zip(x, y, widths, strict=True):
            place = (0, 8) if n_layer == min(depths) else (0, -18)
            axes.annotate(f"{width:.0f}", at, place, ha="center", **beside)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter())
    axes.xaxis.set_minor_formatter(matplotlib.ticker.EngFormatter())
    axes.margins(y=0.15)
    return axes


def overfitting(sources: list[Path]) -> Any:
    """Draw training and validation losses against steps."""
    axes = new_axes("steps", "loss, nats per character")
    for source in sources:
        rows, (x, y) = read_metrics(source), np.transpose(_validation_losses(source))
        (line,) = axes.plot(x, y, "o-", markersize=4, label=source.name)
        color, best = line.get_color(), y.argmin()
        axes.plot(x[best], y[best], "*", color=color, markersize=14)
        axes.plot([row.step for row in rows], [row.train_loss for row in rows], ":", color=color)
    axes.set_title("solid: validation, star: its minimum, dotted: training", loc="left")
    axes.set_ylim(top=3)
    return axes


def sampling(sources: list[Path]) -> Any:
    """Draw characters per second of all rows against the batch size."""
    axes = new_axes("batch size", "characters/s, all rows together")
    for source in sources:
        results = json.loads(source.read_text())["results"]
        works = [(re.fullmatch(r"sample, batch (\d+)", row["work"]), row) for row in results]
        points = [(int(m[1]), row["characters_per_second"]) for m, row in works if m]
        axes.plot(*np.transpose(sorted(points)), "o-", markersize=4, label=source.stem)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    return axes


def drafts(sources: list[Path]) -> Any:
    """Draw the share of drafts accepted in texts that the model writes at each temperature."""
    from shakegpt_jax.inference.decoding import acceptance_rate
    from shakegpt_jax.inference.ngram import build_ngram
    from shakegpt_jax.inference.sampling import Sampling

    axes = new_axes("temperature (0: the most probable character)", "share of drafts accepted")
    for source in sources:
        lm = shakegpt_jax.load(source)
        corpus, n_time = lm.load_corpus(), lm.config.model.block_size
        ngram = build_ngram(corpus.train_ids, lm.tokenizer.vocab_size)
        model, params = lm.for_decoding
        starts = np.linspace(0, len(corpus.val_ids) - n_time, 32).astype(int)
        prompts = [lm.tokenizer.decode(corpus.val_ids[start : start + 1]) for start in starts]
        means = []
        for temperature in TEMPERATURES:
            written = lm.generate(prompts, n_time - 1, temperature=temperature, draft=False)
            rates = []
            for ids_T in map(lm.tokenizer.encode, written):
                contexts_T = ngram.contexts([ids_T[: i + 1] for i in range(n_time)])
                sampled = Sampling(float(temperature))
                rates.append(acceptance_rate(model, params, ngram, ids_T, contexts_T, sampled))
            means.append(np.mean(rates))
        axes.plot(TEMPERATURES, means, "o-", markersize=4, label=source.name)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    return axes


def attention(sources: list[Path]) -> Any:
    """Draw the weights of the head that attends most to spaces and line ends."""
    weights = shakegpt_jax.load(sources[0]).attention(LINE)  # (L, H, T, T)
    between_words = [letter.isspace() for letter in LINE]
    shares = weights[..., between_words].sum((2, 3))
    layer, head = np.unravel_index(shares.argmax(), shares.shape)
    axes = new_axes("", "", height=8)
    axes.grid(visible=False)
    blue = matplotlib.colors.to_rgb(COLORS[0])
    faded = matplotlib.colors.LinearSegmentedColormap.from_list("", [(*blue, 0), (*blue, 1)])
    axes.imshow(weights[layer, head], cmap=faded, vmin=0, vmax=0.5)
    letters = [{"\n": "↵", " ": "·"}.get(letter, letter) for letter in LINE]
    axes.set_xticks(range(len(LINE)), letters, size=10)
    axes.set_yticks(range(len(LINE)), letters, size=10)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.set_title(
        f"layer {layer}, head {head}: each row attends to the columns (full color: 0.5 or more)",
        loc="left",
    )
    return axes


FIGURES = {f.__name__: f for f in (parameters, overfitting, sampling, drafts, attention)}


def draw(name: str, sources: list[Path], path: Path) -> Any:
    """Write an SVG whose ink and paper change with the color scheme of the reader."""
    with matplotlib.rc_context(STYLE):
        axes = FIGURES[name](sources)
        _save(axes, path)
    return axes


def _save(axes: Any, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.figure.savefig(path, metadata={"Date": None})
    svg = path.read_text()
    for number, light in enumerate(DARK):
        svg = svg.replace(light, f"var(--c{number})")
    light = "".join(f"--c{i}: {c};" for i, c in enumerate(DARK))
    dark = "".join(f"--c{i}: {c};" for i, c in enumerate(DARK.values()))
    style = f"svg {{{light}}} @media (prefers-color-scheme: dark) {{svg {{{dark}}}}}"
    path.write_text(svg.replace("<defs>", f"<style>{style}</style>\n<defs>", 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("sources", nargs="+", type=Path)
    args = parser.parse_args()
    draw(args.figure, args.sources, FOLDER / f"{args.figure}.svg")
