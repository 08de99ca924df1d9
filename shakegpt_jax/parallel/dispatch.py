"""Keep the device busy while the host reads results."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Yield each result only after the next one has been dispatched.

    Args:
        results: an iterator whose `next()` dispatches work without waiting for it.

    Yields:
        The results in order.
    """
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield result  # type: ignore[misc]  # the padding None is never yielded
