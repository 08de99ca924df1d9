"""A text as ids, split into training and validation parts."""

import dataclasses
import hashlib
import os

import numpy as np

from shakegpt_jax.data.prepared import load_prepared
from shakegpt_jax.data.text import read_text
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.errors import UserError

TRAIN_FRACTION = 0.9  # of the text, from its start; the rest is the validation split
_PIECES = 64  # with 2**20 characters to score, each fills a batch of an evaluation on a GPU
MAX_CHARACTERS = 2**31 - 1  # of a text: the starts of windows are int32
_PIECE_IDS = 2**20  # ids translated at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenized text and its two splits."""

    tokenizer: CharTokenizer
    train_ids: np.ndarray  # (n_train,)
    val_ids: np.ndarray  # (n_val,)
    sha256: str  # of the text in UTF-8
    note: str = ""  # what reading the file changed


def load_corpus(path: str, block_size: int, characters: str = "") -> Corpus:
    """Read and split a file, which is tokenized, a folder of prepared ids or, "", Tiny Shakespeare.

    The ids of a folder stay on disk, unless `characters` adds some to the vocabulary.
    """
    note: list[str] = []
    if os.path.isdir(os.path.expanduser(path)):
        tokenizer, ids, digest = load_prepared(path)
    else:
        text = read_text(path, note.append)
        tokenizer = CharTokenizer.from_text(text)
        ids, digest = tokenizer.encode(text), hashlib.sha256(text.encode()).hexdigest()
    if tokenizer.vocab_size < 2:
        raise UserError("the text repeats one character; there is nothing to learn from it")
    wider = CharTokenizer.from_text(tokenizer.vocabulary + characters)
    if wider != tokenizer:
        tokenizer, ids = wider, _translate(ids, wider.encode(tokenizer.vocabulary))
    return Corpus(tokenizer, *split(ids, block_size), digest, "".join(note))


def _translate(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Compute table[ids] in pieces: NumPy would copy all ids to 8 bytes each."""
    translated = np.empty(len(ids), table.dtype)
    for start in range(0, len(ids), _PIECE_IDS):
        piece = slice(start, start + _PIECE_IDS)
        translated[piece] = table[ids[piece]]
    return translated


def split(ids: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the (n,) ids of a text into views: the first 90% for training, the rest to validate."""
    cut = int(len(ids) * TRAIN_FRACTION)
    shortest = min(cut, len(ids) - cut)
    if shortest < block_size + 1:
        raise UserError(
            f"the text has {len(ids)} characters, so its smaller split has {shortest}; "
            f"a window of {block_size} and its target need {block_size + 1} in each"
        )
    if len(ids) > MAX_CHARACTERS:
        raise UserError(f"the text has {len(ids):,} characters; at most {MAX_CHARACTERS:,} work")
    return ids[:cut], ids[cut:]


def spread_pieces(ids: np.ndarray, most: int, block_size: int) -> list[np.ndarray]:
    """Sample a text for an evaluation: up to 64 evenly spread pieces, or all if it is short.

    Each piece is whole windows and a target, so that a character has as much context as in all of
    the text. At most `most` characters are scored, but at least one window; 0: all.
    """
    if not most or len(ids) - 1 <= most:
        return [ids]
    n_window = max(1, most // block_size)
    n_piece = min(_PIECES, n_window)
    lengths = [len(part) * block_size + 1 for part in np.array_split(np.empty(n_window), n_piece)]
    gaps = np.linspace(0, len(ids) - sum(lengths), n_piece).astype(int)
    starts = gaps + np.cumsum([0, *lengths[:-1]])
    return [np.array(ids[i : i + n]) for i, n in zip(starts, lengths, strict=True)]
