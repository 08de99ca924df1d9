"""Character-level tokenizer."""

import dataclasses
import functools
import sys
import unicodedata

import numpy as np

from shakegpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """Maps each character to its index in `vocabulary`."""

    vocabulary: str  # distinct characters, sorted by code point

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Build the tokenizer of all characters that occur in a text."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """Number of distinct characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """Convert text to (len(text),) ids of the smallest unsigned type that holds all.

        A `UserError` names the characters outside the vocabulary and their first positions.
        """
        ids = self._ids.take(code_points(text))
        if len(unknown := np.flatnonzero(ids < 0)):
            first: dict[str, int] = {}
            for i in unknown.tolist():
                first.setdefault(text[i], i)
            shown = [f"{show_character(c)} at position {i}" for c, i in first.items()]
            more = ", ..." if len(shown) > 10 else ""
            raise UserError(
                f"not in the vocabulary of {self.vocab_size} characters: "
                f"{', '.join(shown[:10])}{more}"
            )
        return ids.astype(np.min_scalar_type(self.vocab_size - 1))

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Convert (n,) ids in [0, vocab_size) to text."""
        ids = np.asarray(ids, np.int64)
        if len(bad := ids[(ids < 0) | (ids >= self.vocab_size)]):
            raise UserError(f"id {bad[0]} is outside the vocabulary's [0, {self.vocab_size})")
        return self._points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    @functools.cached_property
    def _points(self) -> np.ndarray:
        return code_points(self.vocabulary)

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """The id of every code point; -1 for those outside the vocabulary."""
        ids = np.full(sys.maxunicode + 1, -1, np.int32)
        ids[self._points] = np.arange(self.vocab_size)
        return ids


def show_character(character: str) -> str:
    """Return a character in quotes, or U+0301 for a mark, which would sit on the quote."""
    is_mark = unicodedata.category(character).startswith("M")
    return f"U+{ord(character):04X}" if is_mark else repr(character)


def code_points(text: str) -> np.ndarray:
    """Return the (len(text),) uint32 code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
