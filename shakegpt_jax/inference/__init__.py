"""Using a trained model: sampling, scoring, and the `LanguageModel` that offers both."""

# Defaults of the Python API and of the commands, here so that `--help` does not import JAX.
PROMPT = "O God, O God!"
MAX_NEW_TOKENS = 500
TEMPERATURE = 0.8
SEED = 0
