"""Evaluate a model exactly on a text: loss, perplexity, bits per character.

Every character but the first is scored once. Axes: N windows, B windows of a batch, T
characters of a window.
"""

import dataclasses
import functools
import json
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shakegpt_jax.cli import ArgumentParser, run_command, use_compilation_cache
from shakegpt_jax.data import load_corpus, read_text
from shakegpt_jax.dispatch import one_ahead
from shakegpt_jax.errors import UserError
from shakegpt_jax.model import GPT
from shakegpt_jax.novelty import N_WRITTEN, longest_copies
from shakegpt_jax.sharding import split_batch

if TYPE_CHECKING:
    from shakegpt_jax.language_model import LanguageModel

# Activations that stay in a CPU's cache: three times faster than 16 times as many.
_CPU_BATCH, _BATCH = 1_024, 16_384  # characters


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted."""

    loss: float  # mean negative log-probability, nats per character
    standard_error: float  # of the loss, with characters taken as independent
    perplexity: float  # exp(loss)
    bits_per_character: float  # loss / ln 2
    count: int  # characters scored

    @classmethod
    def from_losses(cls, losses: np.ndarray) -> "Evaluation":
        """Summarize (count,) losses in nats; sums are taken in float64."""
        losses = losses.astype(np.float64)
        loss = float(losses.mean())
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(loss))
        return cls(
            loss=loss,
            standard_error=float(losses.std() / math.sqrt(len(losses))),
            perplexity=perplexity,
            bits_per_character=loss / math.log(2),
            count=len(losses),
        )


def evaluate(model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None) -> Evaluation:
    """Evaluate on a text; arguments and errors as in `character_losses`."""
    return Evaluation.from_losses(character_losses(model, params, ids, stride=stride))


def character_losses(
    model: GPT, params: Any, ids: np.ndarray, *, stride: int | None = None
) -> np.ndarray:
    """Compute the negative log-probability of each character, given those before it.

    Args:
        model: any linen module that maps (B, T) ids to (B, T, V) logits and has a
            `config.block_size`.
        params: its parameters.
        ids: (n,) the text, n at least 2.
        stride: characters from one window to the next. None: block_size, windows do not
            overlap, and a character sees from 1 to block_size before it. Smaller: windows
            overlap, only a window's last `stride` characters are scored (the first window's
            all), and each sees at least block_size - stride + 1 but near the text's start.

    Returns:
        (n - 1,) float32 losses in nats, of ids[1:].

    Raises:
        ValueError: if n is below 2, or stride outside [1, block_size].
    """
    n_time = model.config.block_size
    stride = n_time if stride is None else stride
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} characters has none to score; give 2 or more")
    if not 1 <= stride <= n_time:
        raise ValueError(f"stride is {stride}; it must be from 1 to block_size ({n_time})")
    n_window = 1 + max(0, math.ceil((len(ids) - 1 - n_time) / stride))
    n_character = _CPU_BATCH if jax.default_backend() == "cpu" else _BATCH
    batch_size = max(1, n_character // n_time)
    # A power of two for short texts, so that few shapes are ever compiled.
    batch_size = min(batch_size, 1 << (n_window - 1).bit_length())
    n_padded = math.ceil(n_window / batch_size) * batch_size
    padded = np.zeros((n_padded - 1) * stride + n_time + 1, ids.dtype)
    padded[: len(ids)] = ids
    windows_NxT1 = np.lib.stride_tricks.sliding_window_view(padded, n_time + 1)[::stride]
    windows = (windows_NxT1[i : i + batch_size] for i in range(0, n_padded, batch_size))
    scored: list[np.ndarray] = []
    for losses_BxT in one_ahead(_window_losses(model, params, batch) for batch in windows):
        losses_BxT = np.asarray(losses_BxT)
        if not scored:  # the first window is scored whole
            scored.append(losses_BxT[0, : n_time - stride])
        scored.append(losses_BxT[:, n_time - stride :].ravel())
    return np.concatenate(scored)[: len(ids) - 1]


@functools.partial(jax.jit, static_argnames="model")
def _window_losses(model: GPT, params: Any, windows_BxT1: jax.Array) -> jax.Array:
    windows_BxT1 = split_batch(windows_BxT1).astype(jnp.int32)
    logits_BxTxV = model.apply({"params": params}, windows_BxT1[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, windows_BxT1[:, 1:])


def main() -> None:
    """Run the command line; --help lists its arguments."""
    parser = ArgumentParser("evaluate", "Evaluate a trained model exactly on a text.")
    parser.add_step()
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=("val", "train"), help="of the run's text (val)")
    what.add_argument("--path", help="a UTF-8 text file to evaluate on instead")
    parser.add_argument(
        "--stride", type=int, help="characters from window to window; smaller is slower"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--novelty",
        action="store_true",
        help=f"also the longest copy of training text in {N_WRITTEN:,} characters written",
    )
    args = parser.parse_args()
    if args.path == "":
        parser.error("--path is empty; give a UTF-8 text file")

    from shakegpt_jax.language_model import load  # it imports this module

    use_compilation_cache()
    lm = load(args.workdir, step=args.step)
    own = _own_text(lm) if args.novelty or args.path is None else {}
    text = own[args.split or "val"] if args.path is None else read_text(args.path)
    result = lm.evaluate(text, stride=args.stride)
    copies = longest_copies(lm, own["train"], own["val"]) if args.novelty else {}
    if args.json:
        names = {"checkpoint": str(lm.checkpoint)}
        print(json.dumps(names | dataclasses.asdict(result) | copies))
        return
    print(f"checkpoint          {lm.checkpoint}")
    print(f"loss                {result.loss:.4f} nats/character")
    print(f"standard error      {result.standard_error:.4f}")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"count               {result.count}")
    for name, copy in copies.items():
        print(f"{name.replace('_', ' '):<19} {len(copy)} characters: {copy!r}")


def _own_text(lm: "LanguageModel") -> dict[str, str]:
    """Return both splits of the text that a model was trained on."""
    instead = "to evaluate on another give --path, and no --novelty"
    try:
        corpus = load_corpus(lm.config.data.path, lm.config.model.block_size)
    except UserError as error:
        raise UserError(f"{error}, the one the model was trained on; {instead}") from error
    if corpus.sha256 != lm.text_sha256:
        raise UserError(
            f"{lm.config.data.path} is not the text that the model was trained on any more; "
            f"{instead}"
        )
    decode = lm.tokenizer.decode
    return {"train": decode(corpus.train_ids), "val": decode(corpus.val_ids)}


if __name__ == "__main__":
    run_command(main)
