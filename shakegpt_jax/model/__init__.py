"""The decoder, its KV cache and its FLOP count."""
