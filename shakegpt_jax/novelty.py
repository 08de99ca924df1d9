"""Has a model learned by heart? The longest stretches that it writes as they stand in its text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shakegpt_jax.language_model import LanguageModel

N_WRITTEN = 10_000  # characters, written to be looked at


def longest_copy(text: str, source: str) -> str:
    """Return the longest stretch of a text that stands verbatim in another; the first if several.

    Args:
        text: what may have been copied.
        source: from where.
    """
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


def longest_copies(lm: "LanguageModel", learned: str, held_out: str) -> dict[str, str]:
    """Find the longest copy of what was learned in what a model writes.

    Args:
        lm: writes N_WRITTEN characters, of seed 0 and the temperature that `generate` takes.
        learned: the training text.
        held_out: the validation text; its own longest copy, in as many characters, is what
            there is to expect of a writer who copies nothing.

    Returns:
        `longest_copy` and `in_validation_text`.
    """
    prompt = held_out[0]
    written = lm.generate(prompt, N_WRITTEN)[len(prompt) :]
    return {
        "longest_copy": longest_copy(written, learned),
        "in_validation_text": longest_copy(held_out[:N_WRITTEN], learned),
    }
