"""Metrics that `/metrics` shows, in the default registry of prometheus_client."""

from prometheus_client import Counter, Gauge, Histogram

RUNNING = Gauge("shakegpt_texts_running", "Texts in the batch")
WAITING = Gauge("shakegpt_texts_waiting", "Texts that wait for a place in the batch")
CHARACTERS = Counter("shakegpt_characters", "New characters of all texts")
FIRST_CHARACTER = Histogram(
    "shakegpt_first_character_seconds",
    "Time from a request to the first new character of each of its texts",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
