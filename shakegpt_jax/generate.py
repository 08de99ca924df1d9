"""Generate text with a trained model and stream it to standard output."""

from shakegpt_jax.cli.command import dump_json, run_command, use_compilation_cache


def main() -> None:
    """Parse the arguments, generate and print."""
    import os
    import shlex
    import sys
    from collections.abc import Iterator

    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named, whole_number
    from shakegpt_jax.data.text import decode_text, read_text
    from shakegpt_jax.inference import MAX_NEW_TOKENS, PROMPT, SEED, TEMPERATURE

    parser = ArgumentParser("shakegpt generate", "Generate text with a trained model.")
    parser.usage = f"{parser.prog} [PROMPT] [options]"
    parser.add_run()
    parser.add_step()
    add = parser.add_argument
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", action=StoreOnce, help=f"text to continue ({PROMPT}); -: standard input"
    )
    prompt.add_argument("text", metavar="PROMPT", nargs="?", help="the same as --prompt PROMPT")
    prompt.add_argument(
        "--prompt_file", metavar="FILE", type=named, action=StoreOnce, help="UTF-8 file to continue"
    )
    add("--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help="(%(default)s)")
    add("--temperature", type=float, default=TEMPERATURE, help="0: greedy (%(default)s)")
    add("--top_k", type=int, help="sample from the k most probable characters")
    add("--top_p", type=float, help="sample from the smallest set with probability p")
    add("--min_p", type=float, help="leave out characters below p times the highest probability")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop before it; repeatable")
    add("--seed", type=int, default=SEED, help="random seed (%(default)s)")
    kind, help_text = whole_number(1, 100_000), "with seeds SEED, SEED + 1, ... (%(default)s)"
    add("--num_samples", type=kind, default=1, help=help_text)
    add("--window_stride", type=int, help="characters to drop when the window is full; 1: exact")
    draft = parser.add_mutually_exclusive_group()
    help_text = "draft with an n-gram of the training text (where it is faster)"
    draft.add_argument("--draft", action="store_true", help=help_text)
    draft.add_argument("--nodraft", action="store_false", dest="draft", help="never draft")
    parser.set_defaults(draft=None)
    add("--no_echo", action="store_true", help="print the continuation without the prompt")
    add("--json", action="store_true", help="print one JSON object per sample")
    help_text = "generate it again, traced by JAX's profiler into the run folder"
    add("--profile", action="store_true", help=help_text)
    args = parser.parse_args()
    if args.seed >= 0 and args.seed + args.num_samples > 2**32:
        parser.error(f"--seed plus --num_samples is over {2**32}")
    text = args.prompt if args.text is None else args.text
    if args.prompt_file is not None:
        text = read_text(args.prompt_file)
    elif args.text and os.path.isdir(args.text):
        name = shlex.quote(args.text)
        parser.error(f"{name} is a folder; use --workdir {name}, or --prompt {name} as a text")
    elif text == "-":
        if sys.stdin is None:
            parser.error("--prompt is -, but standard input is closed")
        text = decode_text(sys.stdin.buffer.read(), "standard input")

    from shakegpt_jax.inference.loading import load
    from shakegpt_jax.inference.sampling import Sampling
    from shakegpt_jax.reporting.terminal import print_samples
    from shakegpt_jax.reporting.trace import trace

    use_compilation_cache()
    lm = load(args.workdir or "", step=args.step)
    text = lm.default_prompt() if text is None else text
    seeds = [args.seed + i for i in range(args.num_samples)]
    names = (*Sampling._fields, "stop", "window_stride", "draft")
    options = {name: getattr(args, name) for name in names}

    def stream() -> Iterator[list[str]]:
        return lm.stream([text] * len(seeds), args.max_new_tokens, seed=seeds, **options)

    chunks = stream()
    print(lm.checkpoint, file=sys.stderr)
    if not args.json:
        print_samples(chunks, "" if args.no_echo else text, seeds)
    else:
        for seed, pieces in zip(seeds, zip(*chunks, strict=True), strict=True):
            new = "".join(pieces)
            log_probability = float(lm.score(text + new)[-len(new) :].sum()) if new else 0.0
            sample = {"prompt": text, "text": new, "log_probability": log_probability, "seed": seed}
            print(dump_json(sample))
    if args.profile and lm.checkpoint:
        with trace(lm.checkpoint.parents[1], lambda line: print(line, file=sys.stderr)):
            list(stream())


if __name__ == "__main__":
    run_command(main)
