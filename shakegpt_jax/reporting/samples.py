"""Generated text on standard output."""

from collections.abc import Iterable, Sequence


def print_samples(chunks: Iterable[list[str]], start: str, seeds: Sequence[int]) -> None:
    """Stream the first sample of a batch to standard output, then print the others.

    Args:
        chunks: one new piece of text per sample.
        start: printed before each sample.
        seeds: one per sample; printed in a line before each if there are several.
    """
    headers = [f"--- sample with seed {seed}\n" if len(seeds) > 1 else "" for seed in seeds]
    print(headers[0] + start, end="", flush=True)
    others = [header + start for header in headers[1:]]
    for first, *rest in chunks:
        print(first, end="", flush=True)
        others = [text + new for text, new in zip(others, rest, strict=True)]
    print()
    for text in others:
        print(text)
