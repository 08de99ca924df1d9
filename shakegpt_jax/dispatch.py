"""Keeping the device busy while the host reads."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Pass results on, each after the next one has been dispatched.

    Args:
        results: dispatches a result, without waiting for it, whenever it is asked for one.

    Yields:
        The results in order.
    """
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield result  # type: ignore[misc]  # never the None, which has no successor
