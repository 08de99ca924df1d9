"""From a text file to characters, ids and windows.

Axes: B windows of a batch, T characters of a window.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from shakegpt_jax.errors import UserError

TRAIN_FRACTION = 0.9  # of the text, from its start; the rest is the validation split

_TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare: 1,115,394 characters, 65 of them distinct.

    The text lies as three data files in the wheel of dm-sonnet, which is installed with this
    package for their sake; no code of it is imported. Source: Andrej Karpathy, char-rnn.

    Raises:
        UserError: if the files are missing or hold another text.
    """
    remedy = "reinstall it: pip install --force-reinstall --no-deps dm-sonnet==1.23"
    parts = [f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")]
    try:
        wheel = importlib.metadata.distribution("dm-sonnet")
        raw = b"".join(Path(str(wheel.locate_file(part))).read_bytes() for part in parts)
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise UserError(f"Tiny Shakespeare is not in the install ({error}); {remedy}") from error
    if hashlib.sha256(raw).hexdigest() != _TINY_SHAKESPEARE_SHA256:
        raise UserError(f"the installed Tiny Shakespeare is damaged (wrong SHA-256); {remedy}")
    return raw.decode()


def read_text(path: str) -> str:
    r"""Read a UTF-8 text file; a byte-order mark is dropped, `\r\n` and `\r` become `\n`.

    Args:
        path: the file; empty for Tiny Shakespeare.

    Raises:
        UserError: if there is no such file, it cannot be read, is empty or is not UTF-8.
    """
    if not path:
        return tiny_shakespeare()
    try:
        file = Path(path).expanduser()
        if file.exists() and not (file.is_file() or file.is_dir()):  # a device may have no end
            raise UserError(f"{path} is no regular file; give a UTF-8 text file")
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}; give a UTF-8 text file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; give a UTF-8 text file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (RuntimeError, UnicodeEncodeError) as error:  # ~nobody/x, a lone surrogate
        raise UserError(f"cannot read {path!r}: {error}") from error
    except UnicodeDecodeError as error:
        where = f"byte {error.start} (0x{error.object[error.start]:02x})"
        raise UserError(f"{path} is not UTF-8: {error.reason} at {where}") from error
    if not text:
        raise UserError(f"{path} is empty; give a UTF-8 text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id per character: its place in `vocabulary`."""

    vocabulary: str  # distinct characters, sorted by code point

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Make the tokenizer of a text's own characters."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """Number of distinct characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """Turn text into ids.

        Returns:
            (len(text),) of the smallest unsigned type that holds every id.

        Raises:
            UserError: naming each character outside the vocabulary and its first position.
        """
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = self._points
        ids = np.searchsorted(known, points).clip(max=len(known) - 1)
        if len(unknown := np.flatnonzero(known[ids] != points)):
            first = {text[i]: i for i in reversed(unknown.tolist())}
            shown = [f"{c!r} at position {i}" for c, i in sorted(first.items(), key=lambda x: x[1])]
            more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
            raise UserError(
                f"not among the {self.vocab_size} characters the model knows: "
                f"{', '.join(shown[:10])}{more}"
            )
        return ids.astype(np.min_scalar_type(self.vocab_size - 1))

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Turn ids back into text.

        Args:
            ids: (n,) integers in [0, vocab_size).

        Raises:
            UserError: if an id is outside that range.
        """
        ids = np.asarray(ids, np.int64)
        if len(bad := ids[(ids < 0) | (ids >= self.vocab_size)]):
            raise UserError(f"id {bad[0]} is outside the vocabulary's [0, {self.vocab_size})")
        return self._points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _points(self) -> np.ndarray:
        return np.array([ord(c) for c in self.vocabulary], np.uint32)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text made ready to learn from."""

    tokenizer: CharTokenizer
    train_ids: np.ndarray  # (n_train,)
    val_ids: np.ndarray  # (n_val,)
    sha256: str  # of the text in UTF-8


def load_corpus(path: str, block_size: int) -> Corpus:
    """Read a text and split it; arguments and errors as in `read_text` and `split`."""
    text = read_text(path)
    tokenizer = CharTokenizer.from_text(text)
    train_ids, val_ids = split(tokenizer.encode(text), block_size)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(tokenizer, train_ids, val_ids, digest)


def split(ids: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text once: the first 90% to train on, the rest to validate on.

    Args:
        ids: (n,) the whole text.
        block_size: characters of a window; each split must hold one window and its target.

    Returns:
        Views of the train and the validation ids.

    Raises:
        UserError: if the text is too short or holds only one distinct character.
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


def gather_windows(
    ids: jax.Array, starts_B: jax.Array, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """Cut windows out of a text, with the character that follows each of theirs as its target.

    Args:
        ids: (n,) on the device.
        starts_B: where each window begins, in [0, n - block_size).
        block_size: T.

    Returns:
        inputs and targets, (B, T) int32 each, targets[:, i] following inputs[:, i] in the text.
    """
    windows = jax.vmap(lambda start: jax.lax.dynamic_slice(ids, (start,), (block_size + 1,)))
    windows_BxT1 = windows(starts_B).astype(jnp.int32)
    return windows_BxT1[:, :-1], windows_BxT1[:, 1:]


def sample_windows(
    key: jax.Array, ids: jax.Array, batch_size: int, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw windows uniformly over every start in the text (stride 1), with replacement.

    Args:
        key: decides which.
        ids: (n,) on the device, n > block_size.
        batch_size: B.
        block_size: T.

    Returns:
        inputs and targets as `gather_windows` does.
    """
    starts_B = jax.random.randint(key, (batch_size,), 0, len(ids) - block_size)
    return gather_windows(ids, starts_B, block_size)
