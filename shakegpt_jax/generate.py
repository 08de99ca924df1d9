"""Write text with a trained model.

The prompt and its continuation go to standard output as they are written, everything else to
standard error.
"""

import sys

from shakegpt_jax.cli import ArgumentParser, run_command, use_compilation_cache
from shakegpt_jax.errors import UserError

_PROMPT = "O God, O God!"
_MAX_SAMPLES = 100_000  # in one batch


def main() -> None:
    """Run the command line; --help lists its arguments."""
    parser = ArgumentParser("generate", "Write text with a trained model.")
    parser.add_step()
    add = parser.add_argument
    add("--prompt", help=f"text to go on from ({_PROMPT})")
    add("--max_new_tokens", type=int, default=500, help="characters to write (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0: always the most probable (%(default)s)")
    add("--top_k", type=int, help="choose among the k most probable characters")
    add("--top_p", type=float, help="choose among the fewest whose probabilities reach p")
    add("--num_samples", type=int, default=1, help="of seeds SEED, SEED + 1, ... (%(default)s)")
    add("--seed", type=int, default=0, help="the same seed writes the same text (%(default)s)")
    add("--window_stride", type=int, help="characters dropped when the window is full; 1: exact")
    args = parser.parse_args()
    if not 1 <= args.num_samples <= _MAX_SAMPLES:
        parser.error(f"--num_samples is {args.num_samples}; it must be from 1 to {_MAX_SAMPLES}")
    if args.seed >= 0 and args.seed + args.num_samples > 2**32:
        parser.error(f"--seed plus --num_samples is over {2**32}")

    from shakegpt_jax.language_model import load  # after parsing: --help needs no JAX

    use_compilation_cache()
    lm = load(args.workdir, step=args.step)
    prompt = _PROMPT if args.prompt is None else args.prompt
    if args.prompt is None and not set(_PROMPT) <= set(lm.tokenizer.vocabulary):
        raise UserError(f"this model cannot spell the default prompt, {_PROMPT!r}; give --prompt")
    chunks = lm.stream(
        [prompt] * args.num_samples,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=[args.seed + i for i in range(args.num_samples)],
        window_stride=args.window_stride,
    )
    print(lm.checkpoint, file=sys.stderr)
    # The first text is shown as it grows; the others, written in the same batch, after it.
    print(prompt, end="", flush=True)
    others = [prompt] * (args.num_samples - 1)
    for first, *rest in chunks:
        print(first, end="", flush=True)
        others = [text + new for text, new in zip(others, rest, strict=True)]
    print()
    for i, text in enumerate(others, start=1):
        print(flush=True)
        print(f"--- sample {i + 1} of {args.num_samples}, seed {args.seed + i}", file=sys.stderr)
        print(text)


if __name__ == "__main__":
    run_command(main)
