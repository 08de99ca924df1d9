"""Prepare a text that is too long for memory. If interrupted, run the same command again."""

from shakegpt_jax.cli.command import run_command


def main() -> None:
    """Parse the arguments, prepare the text and say how to train from it."""
    import functools
    import os
    import shlex
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named
    from shakegpt_jax.data.prepared import prepare_text

    parser = ArgumentParser("shakegpt prepare", __doc__)
    parser.usage = f"{parser.prog} BOOK ... --output DIR"
    add = parser.add_argument
    add("books", nargs="+", type=named, metavar="BOOK", help="UTF-8 file; joined in this order")
    help_text = "folder for the prepared text"
    add("--output", type=named, action=StoreOnce, required=True, metavar="DIR", help=help_text)
    args = parser.parse_args()

    console = Console(stderr=True)
    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    notes: list[str] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        sizes = [os.path.getsize(book) for book in args.books if os.path.exists(book)]
        task = bar.add_task("", total=2 * sum(sizes))  # two passes
        advance = functools.partial(bar.advance, task)
        text, existed = prepare_text(args.books, args.output, advance, notes.append)
    for note in notes:
        print(note)
    print(
        f"{args.output} {'holds this text already' if existed else 'is ready'}: "
        f"{len(text.ids):,} characters, {text.tokenizer.vocab_size} distinct"
    )
    run = shlex.quote(f"runs/{Path(args.output).resolve().name}")
    print(f"Train: shakegpt train --config.data.path={shlex.quote(args.output)} --workdir={run}")


if __name__ == "__main__":
    run_command(main)
