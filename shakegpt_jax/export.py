"""Export a trained model: to Hugging Face transformers, or as a page for a browser."""

from shakegpt_jax.cli.command import run_command


def main() -> None:
    """Parse the arguments, export and say how to open the result."""
    import json
    import sys

    from shakegpt_jax.cli.arguments import ArgumentParser, StoreOnce, named
    from shakegpt_jax.cli.command import import_extra, record_signal

    parser = ArgumentParser("shakegpt export", __doc__)
    parser.usage = f"{parser.prog} --output PATH [options]"
    parser.add_run()
    parser.add_step()
    add = parser.add_argument
    help_text = (
        "hf (default): a folder for transformers; html: one file, a page with the model in it"
    )
    add("--format", choices=["hf", "html"], default="hf", help=help_text)
    help_text = "folder for transformers, or HTML file"
    add("--output", type=named, action=StoreOnce, required=True, metavar="PATH", help=help_text)
    add("--force", action="store_true", help="replace an earlier export")
    add("--float32", action="store_true", help="html: weights as they are, not in float16")
    special = parser.add_mutually_exclusive_group()
    help_text = "hf: add [UNK], [PAD] and [EOS], which many tools need (default)"
    special.add_argument("--special_tokens", action="store_true", default=True, help=help_text)
    help_text = "hf: characters only, and the parameters bit for bit"
    special.add_argument(
        "--nospecial_tokens", action="store_false", dest="special_tokens", help=help_text
    )
    args = parser.parse_args()
    html = args.format == "html"
    if args.float32 and not html:
        parser.error("--float32 is for --format html; --format hf is always float32")
    if html and not args.special_tokens:
        parser.error("--nospecial_tokens is for --format hf")

    from shakegpt_jax.inference.loading import load
    from shakegpt_jax.interop.huggingface_export import check_output, export_folder
    from shakegpt_jax.web.page import check_page_path
    from shakegpt_jax.web.prompt_page import export_page

    if html:  # these checks come before loading, which takes longer
        check_page_path(args.output, replace=args.force)
    else:
        import_extra("safetensors", extra="hf")
        check_output(args.output, force=args.force)
    lm = load(args.workdir or "", step=args.step)
    with record_signal() as stop:  # so that no half-written export is left behind
        if html:
            sizes = export_page(lm, args.output, float32=args.float32)
        else:
            sizes = export_folder(
                lm, args.output, special_tokens=args.special_tokens, force=args.force
            )
    if stop.received:
        sys.exit(128 + stop.received)
    print(f"{lm.checkpoint} is exported to {args.output}:")
    for name, size in sizes.items():
        print(f"  {name:<22} {size:>13,} bytes")
    if html:
        print("Open it in a browser: the model is inside, it needs no server and no network.")
        if not args.float32:
            print("The weights are rounded to float16, so texts may differ; --float32 keeps them.")
    else:
        print("Load it in Python, after pip install torch transformers:")
        half = max(1, lm.config.model.block_size // 2)
        folder = json.dumps(args.output)
        print(f'  transformers.pipeline("text-generation", {folder}, max_new_tokens={half})')


if __name__ == "__main__":
    run_command(main)
