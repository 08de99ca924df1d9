"""A text as ids, split into training and validation parts."""

import dataclasses
import hashlib

import numpy as np

from shakegpt_jax.data.text import read_text
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError

TRAIN_FRACTION = 0.9  # of the text, from its start; the rest is the validation split


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenized text and its two splits."""

    tokenizer: CharTokenizer
    train_ids: np.ndarray  # (n_train,)
    val_ids: np.ndarray  # (n_val,)
    sha256: str  # of the text in UTF-8


def load_corpus(path: str, block_size: int) -> Corpus:
    """Read a text, tokenize it and split it. See `read_text` and `split`."""
    text = read_text(path)
    tokenizer = CharTokenizer.from_text(text)
    train_ids, val_ids = split(tokenizer.encode(text), block_size)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(tokenizer, train_ids, val_ids, digest)


def split(ids: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a text: the first 90% for training, the rest for validation.

    Args:
        ids: (n,) the whole text.
        block_size: characters per window. Each split must hold one window and its target.

    Returns:
        Views of the training and the validation ids.

    Raises:
        UserError: if the text is too short or has only one distinct character.
    """
    cut = int(len(ids) * TRAIN_FRACTION)
    shortest = min(cut, len(ids) - cut)
    if shortest < block_size + 1:
        raise UserError(
            f"the text has {len(ids)} characters, so its smaller split has {shortest}; "
            f"a window of {block_size} and its target need {block_size + 1} in each"
        )
    if len(np.unique(ids)) < 2:
        raise UserError("the text repeats one character; there is nothing to learn from it")
    return ids[:cut], ids[cut:]
