"""Run folders and their checkpoints: metadata, digests, reading, writing."""
