"""Keeping the device busy while the host reads."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

T = TypeVar("T")


def one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Pass results on, each after the next one has been dispatched.

    Args:
        results: dispatches a result, without waiting for it, whenever it is asked for one.

    Yields:
        The results in order. A CPU computes in the thread that dispatches, so that there is
        nothing to overlap: there each is passed on at once.
    """
    if jax.default_backend() == "cpu":
        yield from results
    else:
        for result, _ in itertools.pairwise(itertools.chain(results, [None])):
            yield result  # type: ignore[misc]  # never the None, which has no successor
