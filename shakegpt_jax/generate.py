"""Write text with a trained model.

The prompt and its continuation go to standard output as they are written, everything else to
standard error.
"""

import sys

from shakegpt_jax.cli import ArgumentParser, run_command, use_compilation_cache


def main() -> None:
    """Run the command line; --help lists its arguments."""
    parser = ArgumentParser("generate", "Write text with a trained model.")
    add = parser.add_argument
    add("--prompt", default="O God, O God!", help="text to go on from (%(default)s)")
    add("--max_new_tokens", type=int, default=500, help="characters to write (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0: always the most probable (%(default)s)")
    add("--top_k", type=int, help="choose among the k most probable characters")
    add("--top_p", type=float, help="choose among the fewest whose probabilities reach p")
    add("--num_samples", type=int, default=1, help="of seeds SEED, SEED + 1, ... (%(default)s)")
    add("--seed", type=int, default=0, help="the same seed writes the same text (%(default)s)")
    add("--window_stride", type=int, help="characters dropped when the window is full; 1: exact")
    args = parser.parse_args()
    if args.num_samples < 1:
        parser.error(f"--num_samples is {args.num_samples}; it must be 1 or more")

    from shakegpt_jax.language_model import load  # after parsing: --help needs no JAX

    use_compilation_cache()
    chunks = load(args.workdir, step=args.step).stream(
        [args.prompt] * args.num_samples,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=[args.seed + i for i in range(args.num_samples)],
        window_stride=args.window_stride,
    )
    # The first text is shown as it grows; the others, written in the same batch, after it.
    print(args.prompt, end="", flush=True)
    others = [args.prompt] * (args.num_samples - 1)
    for first, *rest in chunks:
        print(first, end="", flush=True)
        others = [text + new for text, new in zip(others, rest, strict=True)]
    print()
    for i, text in enumerate(others, start=1):
        sys.stdout.flush()
        print(f"--- sample {i + 1} of {args.num_samples}, seed {args.seed + i}", file=sys.stderr)
        print(text)


if __name__ == "__main__":
    run_command(main)
