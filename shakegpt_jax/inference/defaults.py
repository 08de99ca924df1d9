"""Default prompt and sampling options, shared by the Python API and the commands."""

PROMPT = "O God, O God!"
MAX_NEW_TOKENS = 500
TEMPERATURE = 0.8
SEED = 0

_LONGEST_PROMPT = 20  # characters


def choose_prompt(vocabulary: str, val_text: str) -> str:
    """Return PROMPT, or the beginning of a line of the text if the vocabulary lacks a character.

    Args:
        vocabulary: the characters that a model knows.
        val_text: text that it can continue, such as the start of its validation split.
    """
    if set(PROMPT) <= set(vocabulary):
        return PROMPT
    _, _, from_next_line = val_text.partition("\n")  # the first line may lack its beginning
    lines = [line for line in (from_next_line or val_text).split("\n") if line.strip()]
    return (lines or [val_text])[0][:_LONGEST_PROMPT]
