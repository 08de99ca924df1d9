"""Using a trained model: sampling, scoring, and the `LanguageModel` that offers both."""

# Defaults of the Python API and of the commands, here so that `--help` does not import JAX.
PROMPT = "O God, O God!"
MAX_NEW_TOKENS = 500
TEMPERATURE = 0.8
SEED = 0

_LONGEST_PROMPT = 20  # characters, of one that is taken from the text


def choose_prompt(vocabulary: str, val_text: str) -> str:
    """Return PROMPT, or the beginning of a line of `val_text` if a character is not known."""
    if set(PROMPT) <= set(vocabulary):
        return PROMPT
    _, _, from_next_line = val_text.partition("\n")  # the first line may lack its beginning
    lines = [line for line in (from_next_line or val_text).split("\n") if line.strip()]
    return (lines or [val_text])[0][:_LONGEST_PROMPT]
