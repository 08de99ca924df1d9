"""Using a trained model: sampling, scoring, and the `LanguageModel` that offers both."""
