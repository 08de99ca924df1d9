"""Keep the device busy while the host reads results or prepares inputs."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def one_ahead(results: Iterable[T]) -> Iterator[T]:
    """Yield each result after the next one; `next(results)` dispatches work and does not wait."""
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield result  # type: ignore[misc]  # the padding None is never yielded


def in_background(function: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
    """Map a function as `map` does, in a thread that computes the next result ahead.

    The thread of the caller draws the arguments, those of one call ahead of the result.
    """
    with ThreadPoolExecutor(1) as thread:
        calls = zip(*arguments, strict=False)
        for future in one_ahead(thread.submit(function, *each) for each in calls):
            yield future.result()
