"""Text, tokenizer, training and validation splits, windows."""
