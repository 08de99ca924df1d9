"""Memorization: the longest training text that a model reproduces verbatim."""

from shakegpt_jax.inference.language_model import LanguageModel

N_GENERATED = 10_000  # characters to search


def longest_copy(text: str, source: str) -> str:
    """Return the longest substring of `text` that occurs in `source`; the first of several."""
    length, end = 0, 0
    for i in range(1, len(text) + 1):
        if text[i - length - 1 : i] in source:
            length, end = length + 1, i
    return text[end - length : end]


def longest_copies(lm: LanguageModel, train_text: str, val_text: str) -> dict[str, str]:
    """Find the longest copy of the training text in text that a model generates.

    Args:
        lm: the model; generates N_GENERATED characters with the default options.
        train_text: what it was trained on.
        val_text: the validation text, a baseline for matches by chance.

    Returns:
        `longest_copy`, and `in_validation_text`, the longest copy in as many characters of the
        validation text.
    """
    prompt = val_text[0]
    generated = lm.generate(prompt, N_GENERATED)[len(prompt) :]
    return {
        "longest_copy": longest_copy(generated, train_text),
        "in_validation_text": longest_copy(val_text[:N_GENERATED], train_text),
    }
