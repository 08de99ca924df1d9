"""Stop strings, which end a generated text."""

from collections.abc import Iterable, Iterator, Sequence


def truncate_at_stops(
    chunks: Iterable[list[str]], stops: Sequence[str], count: int
) -> Iterator[list[str]]:
    """Truncate each text of a batch at its first stop string; end when all are truncated.

    Args:
        chunks: one new piece of text per row.
        stops: non-empty stop strings.
        count: number of rows.

    Yields:
        One piece per row, without stop strings and what follows them.
    """
    filters = [StopFilter(stops) for _ in range(count)]
    for chunk in chunks:
        yield [each.feed(piece) for each, piece in zip(filters, chunk, strict=True)]
        if all(each.stopped for each in filters):
            return
    yield [each.flush() for each in filters]


class StopFilter:
    """Passes generated text on up to the first stop string.

    Text that may be the beginning of a stop string is held back until the next piece decides.
    """

    def __init__(self, stops: Sequence[str]):
        """Filter one text; `stops` are non-empty."""
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Add a piece of text and return what can be passed on."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return the text held back, once nothing more is to come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
